"""Draws of `glauber_step` against the softmax that they are drawn from, from V = 2 to 128k and deep into the tail.

Each check is shown to fail under the faults that samplers are known for, planted in the reference.
"""

import functools
import math
import sys

import pytest
import torch
from laws import check_independence, check_large_law, check_rate

from ggm_kernels import glauber_step
from ggm_kernels.randomness import Stream
from ggm_kernels.reference import philox

OP = "glauber_step"
REFERENCE = sys.modules["ggm_kernels.reference.glauber_step"]  # the package has the function by this name
VOCAB_SIZES = [2, 5, 1000, 50257, 128_000]
# Rows drawn: what each backend does in a few seconds.
LOGITS_DRAWN = {"reference": 2**25, "cpu": 2**30, "triton": 2**23}


def log_probs(vocab_size: int) -> torch.Tensor:
    """All negative, far from 0 and shifted: a sampler that starts its maximum at 0 would never move."""
    generator = torch.Generator().manual_seed(vocab_size)
    return -100 - 1.5 * torch.randn(vocab_size, generator=generator).abs()


def draw(logits: torch.Tensor, rows: int, backend: str, **arguments) -> torch.Tensor:
    """Tokens [rows], all drawn from logits [V], each with another position's noise."""
    tokens = torch.zeros(1, rows, dtype=torch.int32)
    arguments = {"seed": 1, "step": 0, **arguments}
    return glauber_step(tokens, logits.expand(1, rows, -1), torch.arange(rows), backend=backend, **arguments)[
        0
    ]


def rows_for(vocab_size: int, backend: str) -> int:
    return min(400_000, LOGITS_DRAWN[backend] // vocab_size)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_draws_follow_the_softmax(backend, vocab_size):
    logits = log_probs(vocab_size)
    check_large_law(draw(logits, rows_for(vocab_size, backend), backend), logits)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_many_draws_follow_the_softmax(vocab_size):
    logits = log_probs(vocab_size)
    check_large_law(draw(logits, min(50_000_000, 2**35 // vocab_size), "cpu"), logits)


# Faults, planted in the reference


def shared_by_rows(words):
    return words[:1].expand_as(words)


def keyed_by_tile(words):
    return words[:, torch.arange(words.shape[1]) % 1024 % (words.shape[1] // 2 + 1)]


FAULTS = {
    "noise shared by rows": ("race_words", shared_by_rows),
    "noise keyed by tile": ("race_words", keyed_by_tile),
}


@pytest.mark.parametrize("vocab_size", [1000, 50257])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_notices_faulty_noise(fault, vocab_size, monkeypatch):
    name, change = FAULTS[fault]
    right = getattr(philox, name)
    monkeypatch.setattr(philox, name, lambda *coordinates: change(right(*coordinates)))
    with pytest.raises(AssertionError):
        test_draws_follow_the_softmax("reference", vocab_size)


@pytest.mark.parametrize("vocab_size", [2, 5])
def test_the_check_notices_scores_in_half_precision(vocab_size, monkeypatch):
    def scores(z, words):
        log_exponential = torch.log(-torch.log1p(-philox.uniform(words)))
        return (z - 100).half() - log_exponential.half()

    monkeypatch.setattr(REFERENCE, "_scores", scores)
    with pytest.raises(AssertionError):
        test_draws_follow_the_softmax("reference", vocab_size)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_check_notices_a_wrong_temperature(vocab_size):
    logits = log_probs(vocab_size)
    tokens = draw(logits, rows_for(vocab_size, "cpu"), "cpu", temperature=1.2)
    with pytest.raises(AssertionError):
        check_large_law(tokens, logits)


# The tail


@functools.cache
def close_calls() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions at which token 1, 2 or 3 of four has a word near 0; logits of a photo finish there; its winners.

    Token 0 races a token of so small a probability that they finish within 1 %, now one and now the other
    first: it takes the last bits of the small word to tell.
    """
    positions = torch.arange(2**21)
    words = philox.words_at(Stream.RACE, 1, 0, torch.zeros(1, dtype=torch.int64), positions)
    smallest, rare = torch.stack(words[1:]).min(0)
    chosen = smallest < 2**13
    uniform = (torch.stack([words[0], smallest]).T[chosen].double() + 0.5) * 2.0**-32
    time = -torch.log1p(-uniform)
    wins = torch.arange(len(time)) % 2
    logits = torch.full((len(time), 4), -math.inf)
    logits[:, 0] = 0.0
    rare = rare[chosen] + 1
    close = torch.log(time[:, 1] / time[:, 0]) + 0.02 * (wins - 0.5)
    logits.scatter_(1, rare[:, None], close[:, None].float())
    return positions[chosen], logits, wins * rare


def test_tokens_of_tiny_probability_win_when_exact_arithmetic_says_so(backend):
    positions, logits, winners = close_calls()
    assert len(positions) >= 8
    tokens = torch.zeros(1, int(positions.max()) + 1, dtype=torch.int32)
    glauber_step(tokens, logits[None], positions, seed=1, step=0, backend=backend)
    assert torch.equal(tokens[0, positions].long(), winners)


@pytest.mark.parametrize("bits", [16, 23, 24])
def test_the_tail_check_notices_coarse_uniforms(bits, monkeypatch):
    """Uniforms of 23 or 24 bits, as (0, 1] or [0, 1) generators give them, cut the tail off."""

    def coarse(words):
        return (((words >> (32 - bits)).float() + 0.5) * 2.0**-bits).clamp_max(1 - 2.0**-24)

    monkeypatch.setattr(philox, "uniform", coarse)
    with pytest.raises(AssertionError):
        test_tokens_of_tiny_probability_win_when_exact_arithmetic_says_so("reference")


def test_the_tail_check_notices_a_uniform_that_reaches_one(monkeypatch):
    """E = -log(u) with u = 1 in reach is 0 there, and the token wins whatever its probability."""

    def scores(z, words):
        reaching_one = 1 - words.float() * 2.0**-32
        return z - torch.log(-torch.log(reaching_one))

    monkeypatch.setattr(REFERENCE, "_scores", scores)
    with pytest.raises(AssertionError):
        test_tokens_of_tiny_probability_win_when_exact_arithmetic_says_so("reference")


@pytest.mark.slow
def test_events_of_probability_1e_8_occur_at_their_rate():
    """63 such events in each of 1e9 draws: about 630 are due, and a sampler without a tail shows none."""
    logits = torch.full((64,), math.log(1e-8))
    logits[0] = 0.0
    rows, calls = 10_000_000, 100
    probability = 63e-8 / (1 + 63e-8)
    seen = sum(int((draw(logits, rows, "cpu", step=step) > 0).sum()) for step in range(calls))
    bound = 5 * math.sqrt(rows * calls * probability)
    assert abs(seen - rows * calls * probability) < bound, seen


# Independence


@pytest.mark.parametrize("vocab_size", [3, 20])
def test_draws_at_different_coordinates_are_independent(backend, vocab_size):
    logits, rows = log_probs(vocab_size), 100_000
    base = draw(logits, rows, backend)
    ids = torch.tensor([1])
    others = {
        "steps": draw(logits, rows, backend, step=1),
        "seeds": draw(logits, rows, backend, seed=2),
        "samples": draw(logits, rows, backend, sample_ids=ids),
        "samples 2**32 apart": draw(logits, rows, backend, sample_ids=torch.tensor([2**32])),
        "seed 0, sample 1": draw(logits, rows, backend, seed=0, sample_ids=ids),
        **{f"positions {lag} apart": base.roll(lag) for lag in (1, 2, 4, 8, 64, 1024)},
    }
    for other in others.values():
        check_independence(base, other, vocab_size)
    check_independence(others["seed 0, sample 1"], base, vocab_size)


def test_the_check_notices_streams_that_are_added(monkeypatch):
    right = philox.race_words

    def added(seed, step, sample_ids, positions, vocab_size):
        return right(0, step, sample_ids + seed, positions, vocab_size)

    monkeypatch.setattr(philox, "race_words", added)
    with pytest.raises(AssertionError):
        test_draws_at_different_coordinates_are_independent("reference", 3)


# One law, however it is run


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(threads):
    logits = torch.randn(1, 300, 1000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    tokens = []
    for count in (1, threads):
        torch.set_num_threads(count)
        start = torch.zeros(1, 300, dtype=torch.int64)
        tokens.append(
            glauber_step(start, logits, torch.arange(300), seed=1, step=0, top_p=0.9, backend="cpu")
        )
    torch.set_num_threads(before)
    assert torch.equal(*tokens)


def test_kept_rate_under_many_rows(backend):
    """Keep decisions of a row are independent of its race: kept at its rate whatever would have won."""
    logits = log_probs(3) + 100
    f = float(logits[1]) + math.log(0.5 / 0.5 * 3)
    rows = 100_000
    tokens = torch.ones(1, rows, dtype=torch.int64)
    glauber_step(
        tokens, logits.expand(1, rows, -1), torch.arange(rows), seed=1, step=0,
        noise_rate=torch.tensor([0.5]), backend=backend,
    )  # fmt: skip
    keep, law = 1 / (1 + math.exp(-f)), logits.softmax(0)
    check_rate(tokens[0] == 1, keep + (1 - keep) * float(law[1]))
    drawn = draw(logits, rows, backend)
    check_rate((tokens[0] != 1) & (drawn == 0), (1 - keep) * float(law[0]))
