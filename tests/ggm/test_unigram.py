"""Noise with the frequencies of the data, from a run's file to its samples."""

import math

import pytest
import torch

from ggm import GGM
from ggm.config import ConfigError
from ggm.data.sources import PydocData, TextData, load_data
from ggm.data.text import PackedTokens, Texts, TokenStream, open_documents
from ggm.data.unigram import UNIFORM_SHARE, unigram_law
from ggm.objective import minus_log_noise
from ggm.training.checkpoints import read_config
from ggm.training.config import read_config as read_run
from ggm.training.metrics import read_metrics
from ggm.training.run import run
from ggm_kernels import NoiseLaw

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

RUN = """\
data: {kind: pydoc, tokenizer: char}
noise: unigram
model:
  chain: {length: 32, sweeps: 2}
  backbone: {kind: hollow, width: 32, depth: 1, mixing: 1, heads: 2, tied: true}
  objective: {form: marginal, candidates: 8, noise_ratio: 8.0}
  masked_counts: [32]
training: {steps: 30, batch_size: 16, learning_rate: 1.0e-2}
log_every: 5
tracker: none
"""


def configured(folder, *overrides):
    path = folder / "run.yaml"
    path.write_text(f"out: {folder / 'run'}\n{RUN}")
    return read_run(path, overrides)


def test_the_law_is_that_of_the_data_and_leaves_no_token_out():
    tokens = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 3]])
    expected = [(1 - UNIFORM_SHARE) * count / 8 + UNIFORM_SHARE / 4 for count in (5, 2, 0, 1)]
    assert unigram_law(tokens, 4) == pytest.approx(expected, rel=1e-8)


def test_of_many_sequences_some_from_everywhere_are_counted(monkeypatch):
    monkeypatch.setattr("ggm.data.unigram.COUNTED", 10)
    tokens = torch.arange(25)[:, None].div(5, rounding_mode="floor")  # 0 to 4, five times each
    asked = []

    class Watched:
        def __len__(self):
            return len(tokens)

        def __getitem__(self, ids):
            asked.extend(ids.tolist())
            return tokens[ids]

    law = unigram_law(Watched(), 5)
    assert len(asked) <= 10 and max(asked) >= 20
    assert min(law) > 0.1 and math.isclose(sum(law), 1, abs_tol=1e-6)


def test_streams_are_counted_from_their_start(tmp_path):
    (tmp_path / "text.txt").write_text("abab abba " * 50)
    documents = open_documents(str(tmp_path / "text.txt"))
    tokenizer = load_data(TextData(str(tmp_path / "text.txt"), held_out=1), 10).tokenizer
    packing = (Texts(documents, "text", "text.txt"), tokenizer, tokenizer.token_to_id("<|endoftext|>"), 10)
    streamed, packed = (unigram_law(make(*packing), 4) for make in (TokenStream, PackedTokens))
    assert streamed == pytest.approx(packed, rel=0.05)
    assert max(streamed) < 0.5 and min(streamed) > 0.01


def test_a_run_with_tied_hollow_network_learns_keeps_its_law_and_samples(tmp_path, monkeypatch):
    first = run(configured(tmp_path), max_steps=10, progress=False)
    law = read_config(first.checkpoint).noise_probs
    data = load_data(PydocData(), 32)
    assert law == unigram_law(data.train, data.vocab_size)
    # What goes on does not count again: the data may have changed a little.
    monkeypatch.setattr("ggm.training.run.unigram_law", None)
    result = run(configured(tmp_path), resume=True, progress=False)
    assert read_config(result.checkpoint).noise_probs == law
    losses = [
        x["held_out_loss"] for x in read_metrics(tmp_path / "run/metrics.jsonl") if "held_out_loss" in x
    ]
    assert losses[-1] < 0.9 * losses[0]
    model = GGM.from_pretrained(result.checkpoint)
    assert model.noise is not None
    torch.testing.assert_close(model.noise.probs, torch.tensor(law, dtype=torch.float64), rtol=1e-6, atol=0)
    start = model._initial(torch.arange(500), seed=0)
    torch.testing.assert_close(
        start.flatten().bincount(minlength=len(law)) / start.numel(), torch.tensor(law), rtol=0, atol=0.01
    )
    samples = model.sample(4, seed=1).tokens
    assert samples.shape == (4, 32) and 0 <= int(samples.min()) <= int(samples.max()) < len(law)


def test_another_law_is_refused_in_few_words(tmp_path):
    run(configured(tmp_path), max_steps=1, progress=False)
    with pytest.raises(ConfigError, match="model.noise_probs: got None; allowed: ") as caught:
        run(configured(tmp_path, "noise=uniform"), resume=True, progress=False)
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match="noise: got 'unigram' with model.noise_probs"):
        configured(tmp_path, "model.noise_probs=[0.5, 0.5]")


def test_logarithms_of_a_law_are_taken_once():
    probs = torch.tensor([0.0, 1e-3, 0.25, 0.749], dtype=torch.float64)
    law, like = NoiseLaw(probs), torch.zeros(1)
    minus_log_noise(4, law, like)
    law._probs = None  # what logarithms are made of
    given = minus_log_noise(4, law, like)
    least = torch.finfo(torch.float32).tiny
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, -probs.clamp_min(least).log().float(), rtol=1e-7, atol=0)
    uniform = minus_log_noise(4, None, like.double())
    torch.testing.assert_close(uniform, torch.full((4,), math.log(4), dtype=torch.float64))
