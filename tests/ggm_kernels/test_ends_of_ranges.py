"""Values at the ends of their ranges and just beyond, unread ones among them; coordinates of the wrong kind."""

import math

import pytest
import torch

from ggm_kernels import (
    NoiseLaw,
    Stream,
    commit,
    corrupt,
    glauber_race,
    glauber_settle,
    glauber_step,
    linear_cross_entropy,
    linear_expected_embedding,
    linear_glauber_step,
    random_tokens,
)

OP = "glauber_step"
WIDE = torch.float64


def step(tokens, logits, positions=None, **options):
    return glauber_step(tokens, logits, positions, seed=1, step=2, **options)


@pytest.mark.parametrize("name", ["noise_rate", "mixture", "min_p", "top_p"])
@pytest.mark.parametrize("value", [1 + 1e-9, -1e-60, 1 + 1e-15])
def test_float64_just_beyond_a_range_is_refused(backend, name, value):
    if backend == "emulated":
        pytest.skip("device code looks at no values")
    tokens, logits = torch.zeros(1, 2, dtype=torch.int64), torch.randn(1, 2, 8)
    with pytest.raises(ValueError, match=name):
        step(tokens, logits, **{name: torch.tensor([value], dtype=WIDE)}, backend=backend)


@pytest.mark.parametrize("name", ["temperature", "budget"])
def test_float64_just_below_0_is_refused(name):
    tokens, score = torch.zeros(1, 2, dtype=torch.int64), torch.randn(1, 2)
    below = torch.tensor([-1e-60], dtype=WIDE)
    with pytest.raises(ValueError, match=name):
        if name == "budget":
            commit(tokens, tokens + 1, score, budget=below, seed=1, step=2)
        else:
            step(tokens, torch.randn(1, 2, 8), temperature=below)


@pytest.mark.parametrize("value", [1e-50, 1e-300, 7e-46])
def test_temperatures_below_float32_are_no_0(backend, value):
    """Equal largest logits race, whether a number or a tensor says so; 0 itself takes the first."""
    logits = torch.tensor([1.0, 1.0, 0.0, 1.0]).repeat(1, 64, 1)
    for given in (value, torch.tensor([value], dtype=WIDE), torch.full((1, 64), value, dtype=WIDE)):
        tokens, entropy = torch.zeros(1, 64, dtype=torch.int64), torch.empty(1, 64)
        step(tokens, logits, temperature=given, entropy=entropy, backend=backend)
        assert set(tokens.flatten().tolist()) == {0, 1, 3}
        torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(3)), rtol=1e-5, atol=0)
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    assert not step(tokens, logits, temperature=0.0, backend=backend).any()


def test_the_smallest_nucleus_is_the_likeliest_token_however_it_is_given(backend):
    logits = torch.randn(1, 64, 2000, generator=torch.Generator().manual_seed(0))
    for given in (1e-60, torch.tensor([1e-60], dtype=WIDE)):
        tokens = step(torch.zeros(1, 64, dtype=torch.int64), logits, top_p=given, backend=backend)
        assert torch.equal(tokens, logits.argmax(-1))


def test_temperatures_above_float32_are_its_largest(backend):
    logits = torch.randn(1, 3, 50)
    found = [
        step(torch.zeros(1, 3, dtype=torch.int64), logits, temperature=given, backend=backend)
        for given in (1e60, torch.tensor([1e60], dtype=WIDE))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("unread", [-100, 8, 2**40])
@pytest.mark.parametrize("absent", [False, True])
def test_tokens_that_are_not_read_may_be_anything(backend, unread, absent):
    tokens, logits = torch.tensor([[1, 2, unread]]), torch.randn(1, 3, 8)
    options = {"noise": NoiseLaw(torch.full((8,), 1 / 8)), "noise_rate": 0.5, "logit_shift": torch.ones(1)}
    if absent:
        step(tokens, logits, torch.tensor([[0, 1, -1]]), **options, backend=backend)
    else:
        step(tokens, logits, frozen=tokens == unread, **options, backend=backend)
    assert int(tokens[0, 2]) == unread


@pytest.mark.parametrize("unread", [-1, 8, 2**40])
def test_halves_of_a_step_read_no_token_that_is_frozen(unread):
    tokens, logits = torch.tensor([[1, 2, unread]]), torch.randn(1, 3, 8)
    noise, frozen = NoiseLaw(torch.full((8,), 1 / 8)), tokens == unread
    whole, options = tokens.clone(), {"noise": noise, "noise_rate": 0.5, "frozen": frozen}
    step(whole, logits, logit_shift=torch.ones(1), **options)
    settled(tokens, logits, [0, 3, 3, 8], torch.ones(1), **options)
    assert torch.equal(tokens, whole)


def test_a_mask_of_its_own_stands_in_a_step_of_two_halves():
    tokens, logits = torch.tensor([[8, 2, 8]]), torch.randn(1, 3, 8)
    whole, options = tokens.clone(), {"noise": NoiseLaw.absorbing(8, 8), "noise_rate": 0.5}
    step(whole, logits, logit_shift=torch.ones(1), **options)
    settled(tokens, logits, [0, 5, 8], torch.ones(1), **options)
    assert torch.equal(tokens, whole)


def settled(tokens, logits, cuts, shift, **options):
    """A step in two halves; a cut that comes twice is a shard of nothing."""
    states = [
        glauber_race(
            logits[..., begin:end], tokens=tokens, vocab_offset=begin, vocab_size=logits.shape[2],
            seed=1, step=2, logit_shift=shift,
        )
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True)
    ]  # fmt: skip
    return glauber_settle(tokens, states, vocab_size=logits.shape[2], seed=1, step=2, **options)


@pytest.mark.parametrize("hidden_size", [None, 4])
@pytest.mark.parametrize("cuts", [[0, 0, 2500], [0, 1100, 1100, 2500], [0, 2500, 2500]])
def test_a_shard_may_hold_nothing(cuts, hidden_size):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 3, hidden_size or 2500, generator=generator)
    weight = None if hidden_size is None else torch.randn(2500, hidden_size, generator=generator)
    logits = given if weight is None else given @ weight.T
    logits[1, 2, :] = -math.inf if weight is None else logits[1, 2, :]
    tokens, sums = torch.zeros(2, 3, dtype=torch.int64), torch.empty(2, 3)
    expected, of_whole = tokens.clone(), torch.empty(2, 3)
    glauber_step(expected, logits, None, seed=1, step=2, log_sum_exp=of_whole, backend="reference")
    states = []
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        shard = (given[..., begin:end],) if weight is None else (given, weight[begin:end])
        states.append(
            glauber_race(*shard, tokens=tokens, vocab_offset=begin, vocab_size=2500, seed=1, step=2)
        )
    glauber_settle(tokens, states, vocab_size=2500, seed=1, step=2, log_sum_exp=sums)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(sums, of_whole, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("check", ["0", "1"])
@pytest.mark.parametrize("noise_rate", [None, 0.5])
def test_sequences_without_positions(backend, monkeypatch, check, noise_rate):
    monkeypatch.setenv("GGM_KERNELS_CHECK", check)
    tokens, absent = torch.zeros(2, 0, dtype=torch.int64), torch.full((2, 3), -1)
    sums = torch.zeros(2, 3)
    options = {"noise_rate": noise_rate, "log_sum_exp": sums, "backend": backend}
    step(tokens, torch.randn(2, 3, 8), absent, **options)
    assert sums.isnan().all()
    hidden, weight = torch.randn(2, 3, 4), torch.randn(8, 4)
    linear_glauber_step(tokens, hidden, weight, absent, seed=1, step=2, **options)


def test_halves_of_a_step_on_sequences_without_positions():
    tokens, absent = torch.zeros(2, 0, dtype=torch.int64), torch.full((2, 3), -1)
    given = {"vocab_size": 8, "seed": 1, "step": 2}
    state = glauber_race(torch.randn(2, 3, 8), None, absent, tokens=tokens, vocab_offset=0, **given)
    glauber_settle(tokens, [state], absent, **given, noise_rate=0.5)


@pytest.mark.parametrize("linear", [False, True])
def test_a_position_beyond_the_sequence_is_named_before_it_is_looked_up(backend, monkeypatch, linear):
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    tokens, positions = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0, 9], [1, 2]])
    frozen = torch.zeros(2, 4, dtype=torch.bool)
    given = {"seed": 1, "step": 2, "frozen": frozen, "backend": backend}
    with pytest.raises(IndexError, match=r"positions\[0, 1\]: got 9; allowed: \[-1, 4\)"):
        if linear:
            linear_glauber_step(tokens, torch.randn(2, 2, 4), torch.randn(8, 4), positions, **given)
        else:
            glauber_step(tokens, torch.randn(2, 2, 8), positions, **given)


def test_an_error_does_not_use_up_the_one_warning(monkeypatch):
    monkeypatch.setattr("ggm_kernels.ops.glauber_step._has_warned", False)
    tokens, logits = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1, 8), math.nan)
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match="a NaN or nothing but -inf"):
        step(tokens, logits)
    monkeypatch.setenv("GGM_KERNELS_CHECK", "0")
    with pytest.warns(RuntimeWarning, match="a NaN or nothing but -inf"):
        step(tokens, logits)


BAD_COORDINATES = {
    "another device": (torch.tensor(1, device="meta"), ValueError, "device meta"),
    "another layout": (torch.tensor(1).to_sparse(), TypeError, "layout torch.sparse_coo"),
    "another dtype": (torch.tensor(1.0), TypeError, "torch.float32"),
    "another shape": (torch.ones(3, dtype=torch.int64), TypeError, "shape"),
}


@pytest.mark.parametrize("given", BAD_COORDINATES)
@pytest.mark.parametrize(
    "call", ["corrupt", "random_tokens", "commit", "glauber_step", "linear_glauber_step"]
)
def test_a_step_of_the_wrong_kind_is_named(call, given):
    value, error, told = BAD_COORDINATES[given]
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    before = tokens.clone()
    calls = {
        "corrupt": lambda: corrupt(tokens, 0.5, 9, seed=1, step=value),
        "random_tokens": lambda: random_tokens(torch.arange(2), 3, 9, seed=1, step=value, stream=Stream.TIME),
        "commit": lambda: commit(tokens, tokens + 1, torch.randn(2, 3), seed=1, step=value),
        "glauber_step": lambda: glauber_step(tokens, torch.randn(2, 3, 8), None, seed=1, step=value),
        "linear_glauber_step": lambda: linear_glauber_step(
            tokens, torch.randn(2, 3, 4), torch.randn(8, 4), None, seed=1, step=value
        ),
    }
    with pytest.raises(error, match=rf"step: .*{told}"):
        calls[call]()
    assert torch.equal(tokens, before)


def test_an_empty_weight_is_named():
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight: got V = 0"):
        linear_glauber_step(tokens, torch.randn(1, 2, 4), torch.randn(0, 4), None, seed=1, step=2)


@pytest.mark.parametrize("ignore_index", [2**40, -(2**63)])
def test_int32_targets_are_not_ignored_by_the_last_bits_of_a_number(ignore_index):
    hidden, weight, targets = torch.randn(3, 4), torch.randn(8, 4), torch.tensor([0, 1, 2], dtype=torch.int32)
    losses = linear_cross_entropy(hidden, weight, targets, ignore_index=ignore_index, reduction="none")
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets.long(), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_int32_tokens_below_the_largest_vocabulary(backend):
    size = 2**31 - 1
    tokens = torch.tensor([[0, size - 1]], dtype=torch.int32)
    noisy, _ = corrupt(
        tokens, 1.0, size, seed=1, step=2, noise=NoiseLaw.absorbing(size, size), backend=backend
    )
    assert torch.equal(noisy, tokens)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_default_dtype_changes_nothing(normalize):
    generator = torch.Generator().manual_seed(0)
    logits, found = torch.randn(1, 4, 50257, generator=generator), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            keep, log_prob = torch.empty(2, 1, 4, dtype=torch.float32)
            tokens = torch.zeros(1, 4, dtype=torch.int64)
            mixture = torch.tensor([0.5], dtype=torch.float32)
            step(
                tokens, logits, noise_rate=0.3, normalize=normalize, mixture=mixture, keep_prob=keep,
                log_prob=log_prob, backend="reference",
            )  # fmt: skip
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(torch.cat([tokens.double(), keep.double(), log_prob.double()]))
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0.07, 0.1, 0.3])
def test_a_threshold_is_one_whether_a_number_or_a_tensor_says_it(backend, value):
    """Tokens at the very share of the likeliest one, in float32 and in float64."""
    logits = torch.tensor([0.0, math.log(value), float(torch.tensor(value).log()), -50.0]).repeat(1, 256, 1)
    found = [
        step(torch.zeros(1, 256, dtype=torch.int64), logits, min_p=given, backend=backend)
        for given in (value, torch.tensor([value]), torch.tensor([value], dtype=WIDE))
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("temperature", [1e-50, 1e-42, 1e-39])
def test_the_smallest_temperatures_of_an_expected_embedding(temperature):
    hidden, weight, embedding = torch.randn(2, 4), torch.randn(8, 4), torch.randn(8, 3)
    expected = embedding[(hidden @ weight.T).argmax(1)]
    for given in (temperature, torch.full((2,), temperature, dtype=WIDE)):
        found = linear_expected_embedding(hidden, weight, embedding, temperature=given)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
