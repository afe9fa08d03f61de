"""Other libraries in tests: which versions, and tiny random models made from their configurations."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from laws import FALSE_ALARM
from scipy import stats

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def pins(library: str) -> tuple[str, str]:
    """The oldest and the first too new version, as the extra of that name says."""
    return re.search(
        rf'^{library} = \["{library}>=([\d.]+),<([\d.]+)"\]', PYPROJECT.read_text(), re.MULTILINE
    ).groups()  # type: ignore[union-attr]


def library_or_skip(name: str) -> ModuleType:
    """The library, or skip where it is missing, too old or too new."""
    oldest, too_new = pins(name)
    module = pytest.importorskip(name, minversion=oldest)
    if numbers(module.__version__) >= numbers(too_new):
        pytest.skip(f"{name} {module.__version__}: tested below {too_new}")
    return module


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def tiny_diffusion_gemma(vocab_size: int = 64, canvas_length: int = 8, seed: int = 0):
    """A random `DiffusionGemmaForBlockDiffusion`, the same for the same seed; torch's generator stays as it is."""
    transformers = library_or_skip("transformers")
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        sliding_window=32,
        max_position_embeddings=256,
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=16,
        final_logit_softcapping=20.0,
        initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention"],
    )
    vision = transformers.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    specials = {
        name: vocab_size - 1 - i for i, name in enumerate(["boi_token_id", "eoi_token_id", "image_token_id"])
    }
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=canvas_length, **specials
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
        model.lm_head.weight.data.normal_()  # the embedding, too: laws are far from flat
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(model.model.decoder.self_conditioning, name).weight.data.normal_(std=0.3)
    return model


def tiny_llama(vocab_size: int = 64, seed: int = 0):
    """A random language model that takes what LLaDA2's pipeline gives."""
    transformers = library_or_skip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).eval()


class Processor:
    """What a pipeline asks of a processor: five tokens of each prompt."""

    eos_token_id = None

    def apply_chat_template(self, messages, **_):
        prompts = messages if isinstance(messages[0], list) else [messages]
        ids = [[3 + ord(letter) % 40 for letter in prompt[0]["content"][:5]] for prompt in prompts]
        return {"input_ids": torch.tensor(ids)}

    def batch_decode(self, sequences, **_):
        return [" ".join(map(str, sequence.tolist())) for sequence in sequences]


def refuse_logits(monkeypatch, head: torch.nn.Module) -> None:
    """Have the head raise where somebody multiplies all logits out through it, or through the function."""

    def refuse(*_, **__):
        raise AssertionError("logits of all tokens were made")

    monkeypatch.setattr(head, "forward", refuse)
    from ggm_kernels.integrations.linear_logits import LinearLogits

    monkeypatch.setattr(LinearLogits, "multiplied_out", refuse)


def states(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Each row of tokens [N, L] as one number."""
    return (tokens.long() * vocab_size ** torch.arange(tokens.shape[1])).sum(1)


def check_same_law(a: torch.Tensor, b: torch.Tensor, vocab_size: int) -> None:
    """Rows of tokens [N, L] of two samplers, as a whole each: chi-square of the contingency table."""
    counts = torch.stack(
        [torch.bincount(states(rows, vocab_size), minlength=vocab_size ** rows.shape[1]) for rows in (a, b)]
    )
    seen = counts.sum(0) >= 10
    table = torch.cat([counts[:, seen], counts[:, ~seen].sum(1, keepdim=True)], 1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] > 1:
        assert stats.chi2_contingency(table.numpy()).pvalue > FALSE_ALARM


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
