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
from ggm_kernels.randomness import RACE_GROUP, Stream
from ggm_kernels.reference import philox

OP = "glauber_step"
REFERENCE = sys.modules["ggm_kernels.reference.glauber_step"]  # the package has the function by this name
G = RACE_GROUP
VOCAB_SIZES = [2, 5, G - 1, G, G + 1, 2 * G, 50257]
LARGE_VOCAB_SIZES = [128_000, 262_144]
# Rows drawn: what each backend does in a second or two.
LOGITS_DRAWN = {"reference": 2**23, "cpu": 2**28, "triton": 2**20, "emulated": 2**21}
SLOW = ("triton", "emulated")  # the interpreter, and fibers for threads


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
    return min(20_000 if backend in SLOW else 400_000, LOGITS_DRAWN[backend] // vocab_size)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_draws_follow_the_softmax(backend, vocab_size):
    logits = log_probs(vocab_size)
    check_large_law(draw(logits, rows_for(vocab_size, backend), backend), logits)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [*VOCAB_SIZES, *LARGE_VOCAB_SIZES])
def test_many_draws_follow_the_softmax(vocab_size):
    logits = log_probs(vocab_size)
    check_large_law(draw(logits, min(50_000_000, 2**35 // vocab_size), "cpu"), logits)


def spread_logits(within: bool) -> torch.Tensor:
    """Masses over 20 orders of magnitude: between the tokens of each of six groups, or between the groups."""
    generator = torch.Generator().manual_seed(7)
    decades = torch.rand(6, 1 if not within else G, generator=generator) * 20
    decades[0] = decades[0] * (within * 1.0)
    return (-decades * math.log(10)).expand(6, G).flatten() - 0.1 * torch.rand(6 * G, generator=generator)


@pytest.mark.parametrize("within", [True, False])
def test_masses_of_twenty_orders_of_magnitude(backend, within):
    logits = spread_logits(within)
    check_large_law(draw(logits, rows_for(len(logits), backend), backend), logits)


@pytest.mark.parametrize("filters", [{"top_k": 300}, {"top_p": 0.7}, {"min_p": 0.05}], ids=str)
def test_filtered_draws_of_many_groups(backend, filters):
    """Groups race by what the filters left of them: one has many light tokens, which they leave out."""
    logits = heavy_and_light()
    rows = 300 if backend in SLOW else 2000  # a threshold takes them its time
    check_large_law(draw(logits, rows, backend, **filters), filtered_logits(logits, **filters))


def heavy_and_light() -> torch.Tensor:
    logits = torch.full((3 * G,), -30.0)
    logits[:100], logits[G : 2 * G], logits[2 * G : 2 * G + 200] = 0.0, -3.5, -0.5
    return logits


def filtered_logits(logits, top_k=None, top_p=None, min_p=None):
    ordered = logits.sort(descending=True).values
    probs = ordered.double().softmax(0)
    least = {
        top_k: lambda: ordered[top_k - 1],
        top_p: lambda: ordered[(probs.cumsum(0) - probs < top_p).sum() - 1],
        min_p: lambda: ordered[0] + math.log(min_p),
    }[top_k or top_p or min_p]()
    return logits.masked_fill(logits < least, -math.inf)


# Faults, planted in the reference


def shared_by_rows(words):
    return words[:1].expand_as(words)


def keyed_by_tile(words):
    return words[:, torch.arange(words.shape[1]) % 256]


def group_of_a_tile(words):
    return words[:, torch.arange(words.shape[1]) % 2]


FAULTS = {
    "noise shared by rows": ("race_words", shared_by_rows, G),
    "noise keyed by tile": ("race_words", keyed_by_tile, 2 * G),
    "group words shared by rows": ("group_words", shared_by_rows, 8 * G),
    "groups numbered within a tile or a shard": ("group_words", group_of_a_tile, 8 * G),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_notices_faulty_noise(fault, monkeypatch):
    name, change, vocab_size = FAULTS[fault]
    right = getattr(philox, name)
    monkeypatch.setattr(philox, name, lambda *coordinates: change(right(*coordinates)))
    with pytest.raises(AssertionError):
        test_draws_follow_the_softmax("reference", vocab_size)


def test_the_check_notices_a_group_word_that_serves_a_token(monkeypatch):
    right = philox.race_words

    def reused(*coordinates):
        words = right(*coordinates)
        words[:, ::G] = philox.group_words(*coordinates[:-1], -(-words.shape[1] // G))
        return words

    monkeypatch.setattr(philox, "race_words", reused)
    logits = log_probs(2 * G)
    logits[::G] = logits[1::G] = logits.logsumexp(0)
    with pytest.raises(AssertionError):
        check_large_law(draw(logits, rows_for(2 * G, "reference"), "reference"), logits)


def test_the_check_notices_masses_that_are_not_rescaled(monkeypatch):
    """Each relative to its own group's largest logit, as if all groups had the same."""
    right = REFERENCE._leading_group

    def not_rescaled(z, words):
        tops = torch.stack([part.amax(1) for part in z.split(G, 1)], 1)
        own = torch.cat([part - top[:, None] for part, top in zip(z.split(G, 1), tops.T, strict=True)], 1)
        return z.masked_fill(right(own, words) == -math.inf, -math.inf)

    monkeypatch.setattr(REFERENCE, "_leading_group", not_rescaled)
    with pytest.raises(AssertionError):
        test_masses_of_twenty_orders_of_magnitude("reference", False)


@pytest.mark.parametrize("filters", [{"top_k": 300}, {"min_p": 0.05}], ids=str)
def test_the_check_notices_filtered_tokens_that_count_in_their_group(filters, monkeypatch):
    right = REFERENCE._leading_group
    logits = heavy_and_light()

    def counting_all(z, words):
        unfiltered = (logits - logits.amax()).expand_as(z)
        return z.masked_fill(right(unfiltered, words) == -math.inf, -math.inf)

    monkeypatch.setattr(REFERENCE, "_leading_group", counting_all)
    with pytest.raises((AssertionError, RuntimeError)):
        test_filtered_draws_of_many_groups("reference", filters)


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


STREAMS = {
    "tokens": (Stream.RACE, 1),
    "groups": (Stream.GROUP, G),
}  # of a level, and tokens from one to the next


@functools.cache
def close_calls(level: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions at which the second, third or fourth of a level has a word near 0; logits of a photo finish there;
    its winners.

    The first races one of so small a probability that they finish within 1 %, now one and now the other
    first: it takes the last bits of the small word to tell. Groups have a token each.
    """
    stream, stride = STREAMS[level]
    positions = torch.arange(2**21)
    words = philox.words_at(stream, 1, 0, torch.zeros(1, dtype=torch.int64), positions)
    smallest, rare = torch.stack(words[1:]).min(0)
    chosen = smallest < 2**13
    uniform = (torch.stack([words[0], smallest]).T[chosen].double() + 0.5) * 2.0**-32
    time = -torch.log1p(-uniform)
    wins = torch.arange(len(time)) % 2
    logits = torch.full((len(time), 3 * stride + 1), -math.inf)
    logits[:, 0] = 0.0
    rare = (rare[chosen] + 1) * stride
    close = torch.log(time[:, 1] / time[:, 0]) + 0.02 * (wins - 0.5)
    logits.scatter_(1, rare[:, None], close[:, None].float())
    return positions[chosen], logits, wins * rare


@pytest.mark.parametrize("level", STREAMS)
def test_tiny_probabilities_win_when_exact_arithmetic_says_so(backend, level):
    positions, logits, winners = close_calls(level)
    assert len(positions) >= 8
    tokens = torch.zeros(1, int(positions.max()) + 1, dtype=torch.int32)
    glauber_step(tokens, logits[None], positions, seed=1, step=0, backend=backend)
    assert torch.equal(tokens[0, positions].long(), winners)


def coarse(bits: int):
    """What makes uniforms of so many bits of words."""
    return lambda words: (((words >> (32 - bits)).float() + 0.5) * 2.0**-bits).clamp_max(1 - 2.0**-24)


@pytest.mark.parametrize("level", STREAMS)
@pytest.mark.parametrize("bits", [16, 23, 24])
def test_the_tail_check_notices_coarse_uniforms(bits, level, monkeypatch):
    """Uniforms of 23 or 24 bits, as (0, 1] or [0, 1) generators give them, cut the tail off."""
    monkeypatch.setattr(philox, "uniform", coarse(bits))
    with pytest.raises(AssertionError):
        test_tiny_probabilities_win_when_exact_arithmetic_says_so("reference", level)


@pytest.mark.parametrize("level", STREAMS)
def test_the_tail_check_notices_a_uniform_that_reaches_one(level, monkeypatch):
    """E = -log(u) with u = 1 in reach is 0 there, and the token wins whatever its probability."""

    def scores(z, words):
        reaching_one = 1 - words.float() * 2.0**-32
        return z - torch.log(-torch.log(reaching_one))

    monkeypatch.setattr(REFERENCE, "_scores", scores)
    with pytest.raises(AssertionError):
        test_tiny_probabilities_win_when_exact_arithmetic_says_so("reference", level)


RARE = 63  # tokens of probability 1e-8 each
CHANCES = 10**8  # rows


def tail_logits(place: str) -> torch.Tensor:
    """The rare tokens stand first, the last one has what is left: in their group, or in the next one.

    The group of the rare tokens is the long one: the tokens of a long group that wins are what takes time.
    """
    logits = torch.full((RARE + 1 if place == "among others" else G + 1,), -math.inf)
    logits[:RARE], logits[-1] = math.log(1e-8), 0.0
    if place == "inside a light group":
        logits[RARE] = math.log(1e-4)
    return logits


def check_tail(tokens: torch.Tensor, rows: int, place: str) -> None:
    """Of 63 events of probability 1e-8 each, 63 are due in 1e8 rows; a sampler without a tail shows none."""
    expected = rows * float(tail_logits(place).double().softmax(0)[:RARE].sum())
    seen = int((tokens < RARE).sum())
    print(f"{place}: {seen} of {expected:.1f} expected")
    assert abs(seen - expected) < 5 * math.sqrt(expected), (seen, expected)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["among others", "as a light group", "inside a light group"])
def test_events_of_probability_1e_8_occur_at_their_rate(place):
    logits, calls = tail_logits(place), 50
    drawn = [draw(logits, CHANCES // calls, "cpu", step=step) for step in range(calls)]
    check_tail(torch.cat([tokens[tokens < RARE] for tokens in drawn]), CHANCES, place)


@functools.cache
def light_group_wins(mass: float) -> torch.Tensor:
    """Ids of the sequences in which a first group of this mass beats a second one of mass 1, or nearly so."""
    position, found = torch.zeros(1, dtype=torch.int64), []
    for ids in torch.arange(CHANCES).split(2**15):
        light, heavy, _, _ = philox.words_at(Stream.GROUP, 1, 0, ids, position)
        few = light < 32 * mass * 2.0**32  # the other one would have to take longer than 32
        light, heavy = (-torch.log1p(-(word[few] + 0.5) * 2.0**-32) for word in (light, heavy))
        found.append(ids[few][light < 1.01 * mass * heavy])
    return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["as a light group", "inside a light group"])
def test_light_groups_have_their_tail(backend, place):
    """Every sequence in which the light group may win is drawn: as if all were, but soon done."""
    logits = tail_logits(place)
    ids = light_group_wins(float(logits[:-1].double().exp().sum()))
    tokens = torch.full((len(ids), 1), len(logits))
    glauber_step(
        tokens, logits.expand(len(ids), 1, -1), None, seed=1, step=0, sample_ids=ids, backend=backend
    )
    check_tail(tokens, CHANCES, place)


@pytest.mark.slow
def test_the_rate_of_light_groups_notices_coarse_uniforms(monkeypatch):
    monkeypatch.setattr(philox, "uniform", coarse(16))
    with pytest.raises(AssertionError):
        test_light_groups_have_their_tail("reference", "as a light group")


@pytest.mark.slow
def test_the_rate_inside_light_groups_notices_a_group_word_that_serves_a_token(monkeypatch):
    """The word of a light group that won is small."""
    right = philox.race_words

    def reused(*coordinates):
        words = right(*coordinates)
        words[:, :1] = philox.group_words(*coordinates[:-1], 1)
        return words

    monkeypatch.setattr(philox, "race_words", reused)
    with pytest.raises(AssertionError):
        test_light_groups_have_their_tail("reference", "inside a light group")


def shared_tail() -> torch.Tensor:
    """Token 0 of probability 0.999, and 50,000 tokens that share 0.001."""
    logits = torch.full((50_001,), math.log(1e-3 / 50_000))
    logits[0] = math.log(0.999)
    return logits


def test_many_rare_tokens_are_drawn_at_their_rate():
    check_rate(draw(shared_tail(), 100_000, "cpu") > 0, 1e-3)


@pytest.mark.slow
def test_the_check_notices_a_float32_gumbel():
    """Of the kind ``-log(eps - log(u + eps))``, as many samplers draw: uniforms of 24 bits end before such a tail."""
    logits, generator, eps = shared_tail(), torch.Generator().manual_seed(0), 1e-10
    seen = []
    for _ in range(250):
        gumbel = (
            torch.rand(100, len(logits), generator=generator).add_(eps).log_().neg_().add_(eps).log_().neg_()
        )
        seen.append((gumbel + logits).argmax(1) > 0)
    with pytest.raises(AssertionError):
        check_rate(torch.cat(seen), 1e-3)


# Independence


@pytest.mark.parametrize("vocab_size", [3, 20])
def test_draws_at_different_coordinates_are_independent(backend, vocab_size):
    logits, rows = log_probs(vocab_size), 10_000 if backend in SLOW else 100_000
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


def test_the_two_levels_draw_independently(backend):
    """Which group won says nothing of the place of the winner in it, nor of the group that wins the next row."""
    logits = torch.full((4 * G,), -math.inf)
    logits.view(4, G)[:, :4] = 0.0
    tokens = draw(logits, min(20_000, rows_for(4 * G, backend)), backend).long()
    group, place = tokens // G, tokens % G
    check_independence(group, place, 4)
    for lag in (1, 4):
        check_independence(group, group.roll(lag), 4)
        check_independence(group, place.roll(lag), 4)
    check_independence(group, draw(logits, len(group), backend, step=1).long() // G, 4)


def test_the_check_notices_levels_that_share_a_stream(monkeypatch):
    right = philox._words_of_many
    monkeypatch.setattr(philox, "_words_of_many", lambda stream, *rest: right(Stream.RACE, *rest))
    with pytest.raises(AssertionError):
        test_the_two_levels_draw_independently("reference")


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
    rows = 20_000 if backend in SLOW else 100_000
    tokens = torch.ones(1, rows, dtype=torch.int64)
    glauber_step(
        tokens, logits.expand(1, rows, -1), torch.arange(rows), seed=1, step=0,
        noise_rate=torch.tensor([0.5]), backend=backend,
    )  # fmt: skip
    keep, law = 1 / (1 + math.exp(-f)), logits.softmax(0)
    check_rate(tokens[0] == 1, keep + (1 - keep) * float(law[1]))
    drawn = draw(logits, rows, backend)
    check_rate((tokens[0] != 1) & (drawn == 0), (1 - keep) * float(law[0]))
