"""Losses and reverse steps of the rivals against their plain formulas, by enumeration."""

import math

import pytest
import torch
from enumerable import potts_ring
from laws import check_law

from benchmarks.quality import sedd
from benchmarks.quality.mdlm import MDLM, masked_loss, posterior_step
from benchmarks.quality.noising import Geometric, LogLinear, keep_of, training_times
from benchmarks.quality.score_entropy import absorbing_score_entropy, uniform_score_entropy
from benchmarks.quality.sedd import SEDD, tempered_jumps
from benchmarks.quality.system import Request, Shape
from benchmarks.quality.uniform import log_score_of_mean
from ggm.backbones.layers import TransformerConfig
from ggm_kernels import NoiseLaw

V = 3
TINY = TransformerConfig(width=8, depth=1, heads=2)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Score entropy by its definition: all states, all tokens.


def rates(absorbing: bool) -> torch.Tensor:
    """Q, [states, states]: column x holds the rates out of x."""
    if absorbing:
        matrix = -torch.eye(V + 1, dtype=torch.float64)
        matrix[V] += 1.0
        return matrix
    return torch.full((V, V), 1.0 / V, dtype=torch.float64) - torch.eye(V, dtype=torch.float64)


def by_definition(log_score: torch.Tensor, now: int, data: int, sigma: float, absorbing: bool) -> float:
    """Sum over y != now of Q(now, y) [s_theta - s log s_theta + s (log s - 1)]."""
    matrix = rates(absorbing)
    of_data = torch.matrix_exp(sigma * matrix)[:, data]
    total = 0.0
    for token in range(V):
        rate = float(matrix[now, token])
        if token != now and rate > 0.0:
            s = float(of_data[token] / of_data[now])
            constant = s * (math.log(s) - 1.0) if s > 0.0 else 0.0
            total += rate * (float(log_score[token].exp()) - s * float(log_score[token]) + constant)
    return total


@pytest.mark.parametrize("sigma", [0.05, 0.8, 3.0])
def test_score_entropy_of_uniform_noise_is_its_definition(sigma):
    for now in range(V):
        for data in range(V):
            log_score = random(V, seed=now)
            log_score[now] = 0.0
            ours = uniform_score_entropy(
                log_score[None, None],
                torch.tensor([[now]]),
                torch.tensor([[data]]),
                torch.tensor([[math.exp(-sigma)]], dtype=torch.float64),
            )
            assert float(ours) == pytest.approx(by_definition(log_score, now, data, sigma, False), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.8, 3.0])
def test_score_entropy_of_absorbing_noise_is_its_definition(sigma):
    for now in range(V + 1):
        for data in range(V):
            if now not in (data, V):
                continue  # cannot be
            log_score = random(V, seed=now)
            ours = absorbing_score_entropy(
                log_score[None, None],
                torch.tensor([[now == V]]),
                torch.tensor([[data]]),
                torch.tensor([[sigma]], dtype=torch.float64),
            )
            assert float(ours) == pytest.approx(by_definition(log_score, now, data, sigma, True), rel=1e-9)


def test_the_bound_of_masks_is_score_entropy_with_a_normalised_score():
    """MDLM's and SEDD's losses are one where the score is alpha / (1 - alpha) times probabilities."""
    logits, data = random(2, 4, V), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    is_masked = torch.tensor([[True, True, False, True], [False, True, True, True]])
    sigma = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    ratio = 1.0 / torch.expm1(sigma)
    log_score = logits.log_softmax(2) + ratio.log()[..., None]
    ours = masked_loss(logits, is_masked, data, ratio)
    torch.testing.assert_close(ours, absorbing_score_entropy(log_score, is_masked, data, sigma))


LAW = potts_ring(length=3, vocab_size=V)


def expected_gradient(keep: float, fault: str = "") -> torch.Tensor:
    """Gradient of the expected uniform score entropy of position 0 at the true scores: exact."""
    pi = torch.full((V,), 1.0 / V, dtype=torch.float64)
    states, probs = LAW.states(), LAW.noised([keep] * 3, pi).probs.flatten()
    marginals = LAW.noised([keep] * 3, pi)
    others = LAW.noised([1.0, keep, keep], pi)  # x0 at position 0 beside x_t at the others
    log_true = marginals.log_conditional(states, 0)
    log_score = log_true - log_true.gather(1, states[:, :1])
    log_score = log_score.requires_grad_()
    of_data = others.log_conditional(states, 0).exp()
    # Given all of x_t, x0 at position 0 is of this law:
    joint = of_data * (keep * torch.eye(V, dtype=torch.float64)[states[:, 0]] + (1.0 - keep) / V)
    joint = joint / joint.sum(1, keepdim=True)
    total = torch.zeros(())
    for data in range(V):
        given = torch.full_like(states[:, :1], data)
        noisy = states[:, :1]
        told = 1.0 - keep if fault == "1 - alpha for alpha" else keep
        if fault == "data and noisy swapped":
            noisy, given = given, noisy
        loss = uniform_score_entropy(
            log_score[:, None], noisy, given, torch.full((len(states), 1), told, dtype=torch.float64)
        )
        total = total + (probs * joint[:, data]) @ loss[:, 0]
    (gradient,) = torch.autograd.grad(total, log_score)
    own = torch.zeros_like(gradient).scatter(1, states[:, :1], 1.0)
    return gradient * (1.0 - own)  # the score of the token itself is 1 by definition


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_true_scores_minimise_score_entropy(keep):
    assert expected_gradient(keep).abs().max() < 1e-12


@pytest.mark.parametrize("fault", ["1 - alpha for alpha", "data and noisy swapped"])
def test_wrong_score_entropy_is_noticed(fault):
    assert expected_gradient(0.7, fault).abs().max() > 1e-3


def test_scores_of_the_mean_are_ratios_of_the_mixture():
    logits, noisy = random(2, 4, V), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    keep = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    mean = keep[..., None] * logits.softmax(2) + (1.0 - keep[..., None]) / V
    expected = mean / mean.gather(2, noisy[..., None])
    torch.testing.assert_close(log_score_of_mean(logits, noisy, keep).exp(), expected)


# Reverse steps.

ROWS = 100_000


def plain_posterior(now: int, p0: torch.Tensor, keep: tuple[float, float], absorbing: bool) -> torch.Tensor:
    """q(x_s | x_t = now, x0 ~ p0) by Bayes: forward step from x_s to x_t, times the law of x_s."""
    states = V + absorbing
    pi = torch.zeros(states, dtype=torch.float64)
    pi[V if absorbing else slice(None)] = 1.0 if absorbing else 1.0 / V
    law = keep[1] * torch.nn.functional.pad(p0, (0, states - V)) + (1.0 - keep[1]) * pi
    ratio = keep[0] / keep[1]
    forward = (1.0 - ratio) * pi[now] * torch.ones(states, dtype=torch.float64)
    forward[now] += ratio
    return law * forward / (law * forward).sum()


def drawn_step(now: int, logits: torch.Tensor, keep: tuple[float, float], absorbing: bool) -> torch.Tensor:
    tokens = torch.full((ROWS, 1), now)
    posterior_step(
        tokens,
        logits.float().expand(ROWS, 1, V).contiguous(),
        keep=keep,
        noise=NoiseLaw.absorbing(V, V) if absorbing else None,
        request=Request(ROWS, "ancestral", 1, seed=5),
        step=3,
    )
    return tokens


@pytest.mark.parametrize("absorbing", [False, True], ids=["uniform", "absorbing"])
@pytest.mark.parametrize("keep", [(0.3, 0.6), (0.001, 0.2), (0.8, 1.0)])
def test_a_step_draws_from_the_posterior(keep, absorbing):
    logits = random(V, seed=7)
    for now in (0, V) if absorbing else (0, 2):
        expected = plain_posterior(now, logits.softmax(0), keep, absorbing)
        check_law(drawn_step(now, logits, keep, absorbing), expected)


def test_another_posterior_is_noticed():
    logits = random(V, seed=7)
    expected = plain_posterior(V, logits.softmax(0), (0.3, 0.6), True)
    with pytest.raises(AssertionError):
        check_law(drawn_step(V, logits, (0.3, 0.7), True), expected)


@pytest.mark.parametrize("remasked", [0.1, 1.0])
@pytest.mark.parametrize("keep", [(0.3, 0.6), (0.0, 0.2), (0.8, 0.9), (0.8, 1.0)])
def test_masking_again_is_the_paper_s_step_and_keeps_the_marginals(keep, remasked):
    system, logits = MDLM(Shape(1, V, TINY)), random(V, seed=7)
    share = remasked * min(1.0, (1.0 - keep[1]) / keep[0]) if keep[0] > 0.0 else remasked
    settles = (keep[1] - (1.0 - share) * keep[0]) / (1.0 - keep[0])
    from_mask = torch.cat([settles * logits.softmax(0), torch.tensor([1.0 - settles], dtype=torch.float64)])
    from_data = torch.tensor([0.0, 1.0 - share, 0.0, share], dtype=torch.float64)
    for now, law in ((V, from_mask), (1, from_data)):
        tokens = torch.full((ROWS, 1), now)
        many = logits.float().expand(ROWS, 1, V).contiguous()
        system.step(tokens, many, keep, Request(ROWS, "remasking", 1, seed=5), 3, remasked=remasked)
        check_law(tokens, law.clamp(min=0.0))
    assert keep[0] * (1.0 - share) + (1.0 - keep[0]) * settles == pytest.approx(keep[1])


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
@pytest.mark.parametrize("amount", [0.1, 1.5])
def test_analytic_and_euler_probabilities_are_those_of_the_rate_matrix(kind, amount):
    absorbing = kind == "absorbing"
    system = SEDD(Shape(4, V, TINY), kind)
    tokens = torch.tensor([[0, 1, 2, V if absorbing else 0]])
    score = random(1, 4, V, seed=2).exp()
    if not absorbing:
        score.scatter_(2, tokens[..., None], 1.0)
    matrix, decrease = rates(absorbing), torch.tensor(amount, dtype=torch.float64)
    full = torch.cat([score, torch.ones(1, 4, absorbing, dtype=torch.float64)], dim=2)
    backwards, forwards = torch.matrix_exp(-amount * matrix), torch.matrix_exp(amount * matrix)
    for i, now in enumerate(tokens[0].tolist()):
        if absorbing and now != V:
            analytic = euler = torch.eye(V + 1, dtype=torch.float64)[now]
        else:
            analytic = (backwards @ full[0, i]) * forwards[now]
            moves = amount * matrix[now] * full[0, i]
            moves[now] = 0.0
            euler = moves.clone()
            euler[now] = 1.0 - moves.sum()
        torch.testing.assert_close(system._analytic(tokens, score, decrease)[0, i], analytic)
        torch.testing.assert_close(system._euler(tokens, score, decrease)[0, i], euler)


def test_a_temperature_changes_where_jumps_go_and_not_how_many():
    tokens, probs = torch.tensor([[1]]), torch.tensor([[[0.1, 0.6, 0.3]]])
    cold = tempered_jumps(tokens, probs, 0.5)
    torch.testing.assert_close(cold, torch.tensor([[[0.4 * 0.1, 0.6, 0.4 * 0.9]]]))
    certain = tempered_jumps(tokens, torch.tensor([[[0.0, 1.0, 0.0]]]), 0.5)
    torch.testing.assert_close(certain, torch.tensor([[[0.0, 1.0, 0.0]]]))


def test_with_a_log_linear_schedule_euler_is_analytic_for_masks():
    torch.manual_seed(0)
    system = SEDD(Shape(4, V, TINY), "absorbing")
    torch.nn.init.normal_(system.network.head)
    drawn = [system.sample(Request(200, sampler, 9)).tokens for sampler in system.samplers]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric()])
def test_rates_are_derivatives(schedule):
    time = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.sigma(time).sum(), time)
    torch.testing.assert_close(schedule.rate(time).detach(), slope)
    assert keep_of(schedule, torch.ones((), dtype=torch.float64)) < 1.1e-3


def test_times_of_a_batch_are_spread_evenly():
    times = training_times(8, seed=0, step=1, least=0.0)
    assert sorted((times * 8).long().tolist()) == list(range(8))
    assert not torch.equal(times, training_times(8, seed=0, step=2, least=0.0))
    assert not torch.equal(times, times.sort().values)
    assert float(training_times(64, seed=0, step=1).min()) >= 1e-3


def test_the_last_draw_leaves_no_mask():
    torch.manual_seed(0)
    system = SEDD(Shape(4, V, TINY), "absorbing")
    for sampler in system.samplers:
        tokens = system.sample(Request(50, sampler, 2)).tokens
        assert int(tokens.max()) < V
    assert sedd.LAST_TIME > 0.0
