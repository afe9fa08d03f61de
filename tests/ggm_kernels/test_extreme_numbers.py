"""Numbers at the ends of what float32 holds, and beyond: temperatures, by rows and in pairs with options; soft caps."""

import itertools
import math

import pytest
import torch

from ggm_kernels import glauber_step, linear_cross_entropy, linear_expected_embedding, linear_glauber_step

OP = "glauber_step"
FILTERS = [
    {},
    {"top_k": 5},
    {"top_p": 0.5},
    {"min_p": 0.1},
    {"noise_rate": 0.5},
    {"mixture": torch.tensor([0.1])},
]
SIZES = [5, 2500]


@pytest.mark.parametrize("temperature", [1e-45, 4e-39])
@pytest.mark.parametrize(("vocab_size", "options"), list(itertools.product(SIZES, FILTERS)))
def test_the_smallest_temperatures_draw_the_likeliest_token(backend, vocab_size, options, temperature):
    logits = torch.randn(1, 1, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    found = []
    for given in (torch.tensor([temperature]), torch.tensor([[temperature]]), temperature):
        tokens, log_prob, entropy = torch.zeros(1, 1, dtype=torch.int64), torch.empty(1, 1), torch.empty(1, 1)
        glauber_step(
            tokens, logits, None, seed=0, step=0, temperature=given, **options, log_prob=log_prob, entropy=entropy,
            backend=backend,
        )  # fmt: skip
        found.append((int(tokens), float(entropy)))
        if options.keys().isdisjoint(("noise_rate", "mixture")):
            assert int(tokens) == int(logits.argmax()) and float(log_prob) == 0.0
    assert len(set(found)) == 1 and found[0][1] < 1e-30


@pytest.mark.parametrize("temperature", [1e37, 8e37, 1e38, 3e38])
def test_the_largest_temperatures_are_one(backend, temperature):
    """All above 2**126 are that: logits of such size alone could tell them apart."""
    logits = torch.tensor([[[3e38, 0.0, 1e38]]])
    expected = (logits.double() / min(temperature, 2.0**126)).softmax(-1)
    expected = -(expected * expected.log()).sum()
    for given in (temperature, torch.tensor([temperature])):
        tokens, entropy = torch.zeros(1, 1, dtype=torch.int64), torch.empty(1, 1)
        glauber_step(
            tokens, logits, None, seed=0, step=0, temperature=given, entropy=entropy, backend=backend
        )
        torch.testing.assert_close(entropy[0, 0].double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("softcap", [1e-320, 1e-46, 1e-40, 1e39, 1e300])
def test_soft_caps_that_float32_does_not_hold(backend, softcap):
    """The smallest make all logits equal; the largest change none."""
    hidden, weight = torch.eye(4)[:1], torch.tensor([[1.0], [2.0], [3.0], [-4.0]]) * torch.eye(4)[:1]
    logits = (hidden @ weight.T).double() if softcap > 1 else torch.zeros(1, 4, dtype=torch.float64)
    expected = logits.logsumexp(-1)[0]
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    common = {"softcap": softcap, "backend": backend}
    for step, given in (
        (glauber_step, [(hidden @ weight.T)[None]]),
        (linear_glauber_step, [hidden[None], weight]),
    ):
        log_sum_exp = torch.empty(1, 1)
        step(tokens.clone(), *given, None, seed=0, step=0, log_sum_exp=log_sum_exp, **common)
        torch.testing.assert_close(log_sum_exp[0, 0].double(), expected, rtol=1e-6, atol=0.0)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0]), **common)
    assert float(loss.sum()) == pytest.approx(float(expected - logits[0, 0]), rel=1e-5)
    mean = linear_expected_embedding(hidden, weight, torch.eye(4), **common)
    torch.testing.assert_close(mean.double(), logits.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("softcap", [1e36, 1e37, 1e38])
def test_soft_caps_that_make_logits_subnormal_on_the_way(backend, vocab_size, softcap):
    logits = torch.randn(1, 3, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    tokens, argmax = (torch.zeros(1, 3, dtype=torch.int64) for _ in "ab")
    by_products = {name: torch.empty(1, 3) for name in ("log_sum_exp", "entropy", "margin")}
    glauber_step(
        tokens, logits, None, seed=0, step=0, softcap=softcap, temperature=0.0, argmax=argmax,
        log_sum_exp=by_products["log_sum_exp"], margin=by_products["margin"], backend=backend,
    )  # fmt: skip
    assert tokens.equal(logits.argmax(-1)) and argmax.equal(tokens)
    first, second = logits.topk(2).values.unbind(-1)
    torch.testing.assert_close(by_products["log_sum_exp"], logits.logsumexp(-1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(by_products["margin"], first - second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [8, 2500])
@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.01}], ids=str)
def test_the_largest_temperatures_leave_filters_as_they_are(backend, vocab_size, filters):
    """Differences of ordinary logits are subnormal over such a temperature, and are differences still."""
    rows = 40
    logits = (torch.arange(vocab_size) * 0.1).expand(1, rows, -1)
    tokens, log_prob = torch.zeros(1, rows, dtype=torch.int64), torch.empty(1, rows)
    kept = filters.get("top_k") or math.ceil(vocab_size * filters["top_p"])
    glauber_step(
        tokens, logits, None, seed=0, step=0, temperature=1e38, **filters, log_prob=log_prob, backend=backend
    )
    assert int(tokens.min()) >= vocab_size - kept
    torch.testing.assert_close(log_prob, torch.full((1, rows), -math.log(kept)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_subnormal_logits_keep_their_order(backend, vocab_size):
    logits = (torch.arange(vocab_size) % 997 * 1e-41)[None, None]
    for options in ({"top_k": 1}, {"temperature": 0.0}):
        tokens, margin = torch.zeros(1, 1, dtype=torch.int64), torch.empty(1, 1)
        glauber_step(tokens, logits, None, seed=0, step=0, **options, margin=margin, backend=backend)
        assert float(logits[..., int(tokens)]) == float(logits.max())


@pytest.mark.parametrize("softcap", [1.0, 30.0])
def test_soft_caps_that_saturate_leave_the_largest_what_it_is(backend, softcap):
    """Up to 9 times the cap its hyperbolic tangent is below 1 in float32."""
    logits = softcap * torch.linspace(-9.5, 8.9, 64)[None, None]
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    glauber_step(tokens, logits, None, seed=0, step=0, softcap=softcap, temperature=0.0, backend=backend)
    capped = softcap * torch.tanh(logits.double() / softcap).float()
    assert int(tokens) == int(capped.argmax())


@pytest.mark.parametrize("softcap", [0.0, -1.0, math.inf, math.nan])
def test_other_soft_caps_are_refused(softcap):
    logits = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="softcap: got"):
        glauber_step(torch.zeros(1, 1, dtype=torch.int64), logits, None, seed=0, step=0, softcap=softcap)
