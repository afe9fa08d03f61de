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


@pytest.mark.parametrize("softcap", [0.0, -1.0, math.inf, math.nan])
def test_other_soft_caps_are_refused(softcap):
    logits = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="softcap: got"):
        glauber_step(torch.zeros(1, 1, dtype=torch.int64), logits, None, seed=0, step=0, softcap=softcap)
