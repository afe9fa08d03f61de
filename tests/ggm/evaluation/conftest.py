"""Small language models with random weights, written as transformers writes them."""

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from ggm.data.text import END, bpe_tokenizer

VOCAB = 300
POSITIONS = 24
DOCUMENTS = ["the cat sat on the mat and the dog sat on the log"] * 3 + [
    "a statement, a class; an object: 0.5!"
]


def write_model(folder: Path, kind: str, vocab_size: int = VOCAB) -> Path:
    """A folder as `from_pretrained` reads it: model of a kind of transformers, and tokenizer."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "initializer_range": 0.3}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "llama":
        config = transformers.LlamaConfig(max_position_embeddings=POSITIONS, **sizes, **shape)
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.BertConfig(max_position_embeddings=POSITIONS, **sizes, **shape)
        model = transformers.BertForMaskedLM(config)
    model.save_pretrained(folder)
    tokenizer = bpe_tokenizer(DOCUMENTS, VOCAB)
    if kind == "llama":  # whose tokenizers put a start token before every text, unless told not to
        tokenizer.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / f"tiny-{kind}", kind) for kind in ("gpt2", "llama", "bert")}
