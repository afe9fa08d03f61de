"""`mixture` by enumeration: the plug-in posterior of uniform and absorbing diffusion, the Gibbs corrector of a denoiser.

Laws of one position are written down from the mathematics and held against draws; each with planted faults.
"""

import math

import pytest
import torch
from laws import check_law, check_rate

from ggm_kernels import NoiseLaw, glauber_step

OP = "glauber_step"
V, ROWS = 5, 40_000
P0 = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)  # of the data token
SKEWED = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)


def rows_of(backend):
    return ROWS // 10 if backend == "emulated" else ROWS


def drawn(present, logits, backend, **arguments):
    """Tokens of many rows in which `present` stands, all with the same logits [V]."""
    rows = rows_of(backend)
    tokens = torch.full((1, rows), present)
    return glauber_step(
        tokens, logits.float().expand(1, rows, -1), None, seed=1, step=0, backend=backend, **arguments
    )[0]


def mixed(alpha, p=P0, pi=None):
    return alpha * p + (1 - alpha) * (torch.full((V,), 1 / V) if pi is None else pi)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("pi", [None, SKEWED], ids=["uniform", "skewed"])
def test_the_law_of_a_mixture(backend, alpha, pi):
    noise = None if pi is None else NoiseLaw(pi)
    tokens = drawn(0, P0.log() + 3, backend, noise=noise, mixture=torch.tensor([alpha]))
    check_law(tokens, mixed(alpha, pi=pi))


def test_the_law_after_filters_and_temperature(backend):
    p = (P0.log() / 0.7).softmax(0) * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    tokens = drawn(0, P0.log(), backend, temperature=0.7, top_k=3, mixture=torch.tensor([0.6]))
    check_law(tokens, mixed(0.6, p / p.sum()))


def test_a_mask_beside_the_logits(backend):
    noise = NoiseLaw.absorbing(V, V)
    tokens = drawn(V, P0.log(), backend, noise=noise, mixture=torch.tensor([0.7]))
    check_rate(tokens == V, 0.3)
    check_law(tokens[tokens < V], P0)


# The posterior of X_s given X_t, with what the network says of the data put in: uniform and absorbing diffusion


ALPHA_S, ALPHA_T = 0.7, 0.4


def posterior(present, pi, alpha_s=ALPHA_S):
    """q(x_s | x_t) summed over the data: P(x_s) P(x_t | x_s), normalised."""
    tokens = len(pi)
    p0 = torch.nn.functional.pad(P0, (0, tokens - V))
    keep = ALPHA_T / alpha_s
    prior = alpha_s * p0 + (1 - alpha_s) * pi
    likelihood = keep * (torch.arange(tokens) == present) + (1 - keep) * pi[present]
    law = prior * likelihood
    return law / law.sum()


def posterior_step(present, noise, backend, **changes):
    arguments = {
        "noise_rate": 1 - ALPHA_T / ALPHA_S,
        "mixture": torch.tensor([ALPHA_S]),
        "noise": noise,
        **changes,
    }
    return drawn(present, P0.log(), backend, **arguments)


@pytest.mark.parametrize("present", [0, 3])
@pytest.mark.parametrize("pi", [None, SKEWED], ids=["uniform", "skewed"])
def test_the_posterior_of_uniform_diffusion(backend, present, pi):
    noise = None if pi is None else NoiseLaw(pi)
    law = torch.full((V,), 1 / V, dtype=torch.float64) if pi is None else pi
    check_law(posterior_step(present, noise, backend), posterior(present, law))


@pytest.mark.parametrize("present", [2, V])
def test_the_posterior_of_absorbing_diffusion(backend, present):
    """An unmasked token stays; a mask is unmasked at rate (alpha_s - alpha_t) / (1 - alpha_t)."""
    pi = torch.zeros(V + 1, dtype=torch.float64)
    pi[V] = 1.0
    tokens = posterior_step(present, NoiseLaw.absorbing(V, V), backend)
    check_law(tokens, posterior(present, pi))
    check_rate(tokens != V, 1.0 if present < V else (ALPHA_S - ALPHA_T) / (1 - ALPHA_T))


@pytest.mark.parametrize(
    "fault", ["no mixture", "alpha of another time", "rate of another time", "no law of the noise"]
)
def test_the_check_notices_a_wrong_posterior(fault):
    changes = {
        "no mixture": {"mixture": None},
        "alpha of another time": {"mixture": torch.tensor([ALPHA_T])},
        "rate of another time": {"noise_rate": 1 - ALPHA_T},
        "no law of the noise": {"noise": None},
    }[fault]
    with pytest.raises(AssertionError):
        arguments = {"noise": NoiseLaw(SKEWED), **changes}
        check_law(posterior_step(3, backend="reference", **arguments), posterior(3, SKEWED))


# The Gibbs corrector: a denoiser that sees the token, made leave-one-out


def corrected(present, backend, alpha=0.6, **changes):
    """A heat-bath step from a denoiser's logits: its posterior of the data token, given the one that stands there."""
    seen = alpha * (torch.arange(V) == present) + (1 - alpha) / V
    denoiser = (P0 * seen).log()
    shift = -math.log1p(V * alpha / (1 - alpha))
    arguments = {"logit_shift": torch.tensor([shift]), "mixture": torch.tensor([alpha]), **changes}
    return drawn(present, denoiser, backend, **arguments)


@pytest.mark.parametrize("present", [0, 4])
def test_the_gibbs_corrector_draws_the_conditional_of_the_chain(backend, present):
    check_law(corrected(present, backend), mixed(0.6))


@pytest.mark.parametrize("fault", ["logit_shift", "mixture"])
def test_the_check_notices_what_is_left_out_of_the_corrector(fault):
    with pytest.raises(AssertionError):
        check_law(corrected(4, "reference", **{fault: None}), mixed(0.6))


def test_sides_and_noise_are_independent_of_the_keep_decision(backend):
    """Replaced rows draw from the mixture whatever the keep decision's word was."""
    law = mixed(0.5)
    present, rate = 1, 0.5
    tokens = drawn(present, P0.log(), backend, noise_rate=rate, mixture=torch.tensor([0.5]))
    odds = float(law[present]) * V * (1 - rate) / rate
    keeps = odds / (1 + odds)
    expected = (1 - keeps) * law
    expected[present] += keeps
    check_law(tokens, expected)


def test_log_prob_is_that_of_the_mixture(backend):
    by_product, raw = torch.zeros(2, 1, rows_of(backend))
    tokens = drawn(
        0, P0.log() + 2, backend, mixture=torch.tensor([0.4]), log_prob=by_product, raw_log_prob=raw
    )
    torch.testing.assert_close(by_product[0].double(), mixed(0.4).log()[tokens], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw[0].double(), P0.log()[tokens], rtol=1e-5, atol=1e-5)
