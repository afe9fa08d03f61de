"""`glauber_step` and `linear_glauber_step`: the law of a draw, keep-or-replace, filters, errors before work."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_independence, check_law, check_rate
from torch.nn.functional import linear

from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step

OP = "glauber_step"


def drawn(logits, rows, backend="reference", **arguments):
    """Tokens drawn `rows` times from one row of logits [V], starting from token 0."""
    if backend == "emulated" or backend == "triton" and {"top_k", "top_p", "min_p"} & set(arguments):
        rows = min(rows, 5000)  # fibers for threads, or interpreted; and many tests more
    tokens = torch.zeros(1, rows, dtype=torch.int64)
    repeated = logits.expand(1, rows, -1)
    arguments = {"seed": 1, "step": 0, **arguments}
    return glauber_step(tokens, repeated, torch.arange(rows), backend=backend, **arguments)[0]


def logits_of(vocab_size, seed=0):
    # All negative, as log-probabilities are: a sampler that starts its maximum at 0 would never move.
    return -5 - torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)).abs() * 1.5


# The law of a draw


@pytest.mark.parametrize("vocab_size", [2, 5, 50])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_softmax(backend, vocab_size, temperature):
    logits = logits_of(vocab_size)
    tokens = drawn(logits, 20000, backend, temperature=temperature)
    check_law(tokens, (logits / temperature).softmax(0))


def test_the_check_refuses_a_wrong_temperature_and_shared_noise():
    logits = logits_of(5)
    with pytest.raises(AssertionError):
        check_law(drawn(logits, 20000, temperature=1.3), logits.softmax(0))
    with pytest.raises(AssertionError):
        check_law(drawn(logits, 1).expand(20000), logits.softmax(0))


def test_rows_steps_samples_and_seeds_draw_independently(backend):
    logits, rows = torch.zeros(4), 20000
    base = drawn(logits, rows, backend)
    others = [
        base.roll(1),
        drawn(logits, rows, backend, step=1),
        drawn(logits, rows, backend, seed=2),
        drawn(logits, rows, backend, sample_ids=torch.tensor([1])),
        drawn(logits, rows, backend, seed=0, sample_ids=torch.tensor([1])),
    ]
    for other in others:
        check_independence(base, other, 4)


def test_temperature_zero_takes_the_first_largest(backend):
    assert drawn(torch.tensor([0.0, 3.0, 1.0, 3.0]), 50, backend, temperature=0.0).unique().tolist() == [1]


@pytest.mark.parametrize("temperature", [1e30, 1e300])  # the latter is beyond float32
def test_huge_temperatures_leave_the_support(backend, temperature):
    tokens = drawn(torch.tensor([50.0, -math.inf, 0.0]), 20000, backend, temperature=temperature)
    check_law(tokens, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_tiny_temperatures_do_not_overflow(backend, temperature):
    assert drawn(
        torch.tensor([50.0, 60.0, 59.0]), 50, backend, temperature=temperature
    ).unique().tolist() == [1]


def test_infinite_logits(backend):
    inf = math.inf
    assert drawn(torch.tensor([0.0, -inf, inf]), 50, backend).unique().tolist() == [2]
    check_law(drawn(torch.tensor([0.0, -inf, 1.0]), 20000, backend), torch.tensor([1.0, 0.0, math.e]))


@pytest.mark.parametrize("bad", [[float("nan"), 0.0, 1.0], [-math.inf] * 3])
def test_rows_without_a_law_leave_their_token(backend, bad, monkeypatch):
    tokens = torch.tensor([[2, 2]])
    logits = torch.tensor([[bad, [0.0, 50.0, 0.0]]])
    glauber_step(tokens, logits, torch.arange(2), seed=1, step=0, backend=backend)
    assert tokens.tolist() == [[2, 1]]
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    by_products = {name: torch.full((1, 2), 7.0) for name in ("log_sum_exp", "log_prob", "keep_prob")}
    tokens, rate = torch.tensor([[2, 2]]), torch.ones(1)
    with pytest.raises(ValueError, match=r"logits\[0, 0\]: got a row with a NaN or nothing but -inf"):
        glauber_step(
            tokens, logits, torch.arange(2), seed=1, step=0, noise_rate=rate, backend=backend, **by_products
        )
    assert tokens.eq(2).all() and all(value.eq(7).all() for value in by_products.values())
    logits[0, 0] = logits[0, 1]
    glauber_step(
        tokens, logits, torch.arange(2), seed=1, step=0, noise_rate=rate, backend=backend, **by_products
    )
    assert tokens.eq(1).all() and not any(value.eq(7).any() for value in by_products.values())


# Filters


def test_top_k_keeps_ties(backend):
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    check_law(drawn(logits, 20000, backend, top_k=2), torch.tensor([0.0, math.e, 1.0, 1.0, 0.0]))
    check_law(drawn(logits, 20000, backend, top_k=99), logits.softmax(0))


def test_top_p_keeps_the_smallest_set_that_reaches_p(backend):
    probs = torch.tensor([0.1, 0.5, 0.25, 0.15])
    for top_p, kept in [(0.3, [1]), (0.5001, [1, 2]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])]:
        mask = torch.zeros(4).index_fill(0, torch.tensor(kept), 1.0)
        check_law(drawn(probs.log(), 20000, backend, top_p=top_p), probs * mask)


def test_min_p_is_relative_to_the_largest(backend):
    probs = torch.tensor([0.1, 0.5, 0.25, 0.15])
    check_law(drawn(probs.log(), 20000, backend, min_p=0.4), torch.tensor([0.0, 0.5, 0.25, 0.0]))


def test_filters_apply_in_their_order(backend):
    # Of [.4, .3, .2, .1] top-k leaves three, renormalised to [.44, .33, .22]; then p = .75 leaves two.
    # On the probabilities before top-k it would leave three.
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])
    check_law(drawn(probs.log(), 20000, backend, top_k=3, top_p=0.75), torch.tensor([4.0, 3.0, 0.0, 0.0]))
    check_law(
        drawn(probs.log(), 20000, backend, top_k=3, top_p=0.9, min_p=0.6),
        torch.tensor([4.0, 3.0, 0.0, 0.0]),
    )
    # Temperature comes first: at 1/2 the squares count.
    squares = probs**2 * torch.tensor([1.0, 1.0, 0.0, 0.0])
    check_law(drawn(probs.log(), 20000, backend, temperature=0.5, top_p=0.8), squares)


# Keep-or-replace


def kept(backend, g, eps, start=0, **arguments):
    """Which rows keep token `start` where every draw would give another token: bool [rows]."""
    rows = 5000 if backend == "emulated" else 20000
    tokens = torch.full((1, rows), start, dtype=torch.int64)
    # temperature 0 makes the draw certain, away from `start`; the verdict reads the raw logit all the same
    glauber_step(
        tokens, g.expand(1, rows, -1), torch.arange(rows), seed=1, step=0, temperature=0.0,
        noise_rate=torch.tensor([eps]), backend=backend, **arguments,
    )  # fmt: skip
    return (tokens == start)[0]


@pytest.mark.parametrize("eps", [0.001, 0.3, 0.9])
def test_keep_probability_is_the_sigmoid_of_the_verdict(backend, eps):
    g = torch.tensor([-3.0, 0.5, -1.0])
    f = -3.0 + math.log((1 - eps) / eps) + math.log(3)
    check_rate(kept(backend, g, eps), 1 / (1 + math.exp(-f)))
    normalised = f - float(g.logsumexp(0))
    check_rate(kept(backend, g, eps, normalize=True), 1 / (1 + math.exp(-normalised)))
    noise = NoiseLaw(torch.tensor([0.7, 0.2, 0.1]))
    with_law = -3.0 + math.log((1 - eps) / eps) - math.log(0.7)
    check_rate(kept(backend, g, eps, noise=noise), 1 / (1 + math.exp(-with_law)))


def test_noise_rates_zero_and_one_are_certain(backend):
    g = torch.tensor([-3.0, 0.5, -1.0])
    assert kept(backend, g, 0.0).all()
    assert not kept(backend, g, 1.0).any()


def test_noise_rate_per_position(backend):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    logits = torch.tensor([0.0, 50.0]).expand(2, 2, 2)
    rate = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    glauber_step(tokens, logits, torch.tensor([0, 2]), seed=1, step=0, noise_rate=rate, backend=backend)
    assert tokens.tolist() == [[0, 0, 1], [1, 0, 0]]


# Rows, positions, samples


def test_writes_in_place_and_only_where_asked(backend):
    tokens = torch.zeros(2, 6, dtype=torch.int32)
    logits = torch.full((2, 2, 4), -50.0).index_fill(2, torch.tensor(3), 0.0)
    frozen = torch.zeros(2, 6, dtype=torch.bool)
    frozen[0, 4] = True
    positions = torch.tensor([[1, 4], [5, 0]])
    out = glauber_step(tokens, logits, positions, seed=1, step=0, frozen=frozen, backend=backend)
    assert out is tokens
    assert tokens.tolist() == [[0, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 3]]


def test_splitting_batch_or_positions_changes_nothing(backend):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 11, generator=generator)
    start = torch.randint(11, (4, 7), generator=generator)
    positions, ids = torch.tensor([5, 0, 3]), torch.tensor([9, 2**40 - 1, 0, 2**32])
    rate = torch.full((4,), 0.9)
    whole = glauber_step(
        start.clone(),
        logits,
        positions,
        seed=5,
        step=8,
        sample_ids=ids,
        noise_rate=rate,
        backend=backend,
    )
    parts = start.clone()
    for row in range(4):
        for k in range(3):
            glauber_step(
                parts[row : row + 1], logits[row : row + 1, k : k + 1], positions[k : k + 1], seed=5,
                step=torch.tensor(8), sample_ids=ids[row : row + 1], noise_rate=rate[row : row + 1], backend=backend,
            )  # fmt: skip
    assert torch.equal(parts, whole)


@settings(deadline=None, max_examples=8)
@given(
    batch=st.integers(0, 3),
    count=st.integers(0, 4),
    vocab_size=st.integers(1, 30),
    hidden_size=st.integers(0, 9),
)
def test_linear_is_the_step_on_the_product(backend, batch, count, vocab_size, hidden_size):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, count, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator)
    bias = torch.randn(vocab_size, generator=generator)
    start = torch.randint(vocab_size, (batch, 4), generator=generator)
    arguments = {
        "seed": 3,
        "step": 1,
        "top_p": 0.9,
        "noise_rate": torch.full((batch,), 0.5),
        "backend": backend,
    }
    positions = torch.arange(count)
    fused = linear_glauber_step(start.clone(), hidden, weight, positions, bias=bias, **arguments)
    expected = glauber_step(start.clone(), linear(hidden, weight, bias), positions, **arguments)
    assert torch.equal(fused, expected)


# By-products


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.8, "min_p": 0.01}, {"temperature": 0.0}])
def test_by_products_are_what_they_are_called(backend, filters):
    vocab_size, rows = 50, 300
    logits = logits_of(vocab_size).expand(rows, -1) + torch.randn(rows, 1)
    logits[3, 7], logits[4] = math.nan, -math.inf
    logits[5, :9] = -math.inf
    start = torch.randint(vocab_size, (1, rows))
    frozen = torch.arange(rows)[None] % 10 == 9
    eps, temperature = torch.tensor([0.8]), filters.get("temperature", 0.6)
    names = ("log_sum_exp", "log_prob", "keep_prob")
    by_products = {name: torch.full((1, rows), 77.0) for name in names}
    arguments = {
        "seed": 1,
        "step": 0,
        "noise_rate": eps,
        "normalize": True,
        "frozen": frozen,
        "backend": backend,
    }
    arguments |= {"temperature": temperature, **filters}
    positions = torch.arange(rows)
    plain = glauber_step(start.clone(), logits[None], positions, **arguments)
    tokens = glauber_step(start.clone(), logits[None], positions, **arguments, **by_products)
    assert torch.equal(tokens, plain)
    log_sum_exp, log_prob, keep_prob = (by_products[name][0] for name in names)
    thawed = ~frozen[0]
    assert all(value[0][frozen[0]].isnan().all() for value in by_products.values())
    lawful = thawed & (logits.logsumexp(1) > -math.inf)
    torch.testing.assert_close(log_sum_exp[lawful], logits.logsumexp(1)[lawful], equal_nan=True)
    if backend in ("reference", "cpu", "triton"):
        assert log_sum_exp[~lawful].isnan().all()
    f = logits.gather(1, start.T)[:, 0] - logits.logsumexp(1) + math.log(0.2 / 0.8 * vocab_size)
    torch.testing.assert_close(keep_prob[thawed], f.sigmoid()[thawed], equal_nan=True, rtol=1e-5, atol=1e-6)
    drawn = ~log_prob.isnan()
    assert not (frozen[0] & drawn).any() and not drawn[3:5].any()
    assert torch.equal(tokens[0][~drawn], start[0][~drawn])
    assert 0.2 < drawn.float().mean() < 0.98
    # The law after the filters: what a draw without keeping leaves of the vocabulary.
    law = filtered(logits / temperature if temperature else logits, **filters)
    expected = law.log_softmax(1).gather(1, tokens.T)[:, 0]
    torch.testing.assert_close(log_prob[drawn], expected[drawn], rtol=1e-4, atol=1e-5)


def filtered(z, top_k=None, top_p=None, min_p=None, temperature=None):
    """Hugging Face's filters in their order, by sorting; temperature 0 leaves the largest."""
    if temperature == 0:
        return z.masked_fill(z < z.amax(1, keepdim=True), -math.inf)
    if top_k is not None:
        z = z.masked_fill(z < z.sort(1, descending=True).values[:, top_k - 1 : top_k], -math.inf)
    if top_p is not None:
        ascending = z.sort(1)
        removed = ascending.values.softmax(1).cumsum(1) <= 1 - top_p
        z = z.masked_fill(removed.scatter(1, ascending.indices, removed), -math.inf)
    if min_p is not None:
        probs = z.softmax(1)
        z = z.masked_fill(probs < min_p * probs.amax(1, keepdim=True), -math.inf)
    return z


def test_linear_gives_the_same_by_products(backend):
    hidden, weight = torch.randn(2, 3, 8), torch.randn(60, 8)
    names = ("log_sum_exp", "log_prob", "keep_prob")
    ours, theirs = ({name: torch.zeros(2, 3) for name in names} for _ in range(2))
    arguments = {
        "seed": 1,
        "step": 0,
        "noise_rate": torch.tensor([0.9, 0.99]),
        "top_p": 0.9,
        "backend": backend,
    }
    positions, tokens = torch.tensor([0, 2, 3]), torch.randint(60, (2, 4))
    linear_glauber_step(tokens.clone(), hidden, weight, positions, **arguments, **ours)
    glauber_step(tokens.clone(), linear(hidden, weight), positions, **arguments, **theirs)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], equal_nan=True)


@pytest.mark.slow
def test_logits_of_more_than_2_31_elements():
    vocab_size, rows = 2**20, 2**11 + 3
    logits = torch.full((1, rows, vocab_size), -30.0, dtype=torch.bfloat16)
    favourites = torch.arange(rows) * 511
    logits[0, torch.arange(rows), favourites] = 30.0
    tokens = torch.zeros(1, rows, dtype=torch.int64)
    glauber_step(tokens, logits, torch.arange(rows), seed=1, step=0, backend="cpu")
    assert torch.equal(tokens[0], favourites)
