"""Samplers with exact predictions of the data return the data law, and the planted faults are noticed."""

import math

import pytest
import torch
from enumerable import LAWS, Law, assert_follows, law_at, noise_law, skewed, uneven_chain, uniform
from exact_data import ExactData
from test_likelihood_law import assert_above, assert_mean, entropy, prior_gap, short_chain

from ggm.evaluation import likelihood, log_conditionals
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.likelihood import chain_bound
from ggm.mixture import leave_one_out_shift, log_mixture
from ggm.sampling import steps
from ggm.sampling.config import ReDenoise, SamplingConfig
from ggm.sampling.event_driven import denoise_by_events
from ggm.sampling.stepwise import LinearLogits, denoise, initial_tokens
from ggm_kernels import glauber_step

COUNT = 20_000
SEES = {"leave-one-out": False, "denoiser": True}
SETTINGS = {
    "heat bath": {},
    "keep or replace": {"keep_or_replace": True},
    "ReDenoise": {"keep_or_replace": True, "redenoise": ReDenoise(sweeps=2, repeats=2)},
}


def samples(
    data: Law,
    pi: torch.Tensor,
    sees_own: bool,
    settings: dict,
    *,
    count: int = COUNT,
    late: int = 0,
    **options,
) -> torch.Tensor:
    chain, noise = uneven_chain(data.length), noise_law(pi)
    exact = ExactData(data, chain, pi, sees_own, late)
    start = initial_tokens(torch.arange(count), data.length, data.vocab_size, seed=61, noise=noise)
    options = {"seed": 62, "noise": noise, "vocab_size": data.vocab_size, **options}
    return denoise(exact.one_group, chain, start, SamplingConfig(**settings), **options).tokens


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize(("name", "noise"), [("potts", uniform), ("random", skewed)])
def test_exact_predictions_return_the_data_law(name, noise, sees, settings):
    data = LAWS[name]()
    assert_follows(samples(data, noise(data.vocab_size), SEES[sees], SETTINGS[settings]), data)


@pytest.mark.parametrize("sees", SEES)
def test_correctors_leave_the_law_and_draw_anew(sees):
    """That of X_3 and that of the data; with conditionals of another time they do not."""
    data, pi, seen = LAWS["random"](), skewed(5), {}
    expected = law_at(data, uneven_chain(3), 3, pi)
    corrected = {"keep_or_replace": True, "corrector_sweeps": 2}
    watch = {"observe": lambda t, x: seen.update({t: x.clone()}), "count": 2 * COUNT}
    samples(data, pi, SEES[sees], SETTINGS["keep or replace"], **watch)
    before = seen[3]
    assert_follows(samples(data, pi, SEES[sees], corrected, **watch), data)
    assert_follows(seen[3], expected)
    assert (seen[3] != before).any(1).double().mean() > 0.5
    samples(data, pi, SEES[sees], corrected, late=3, **watch)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(seen[3], expected)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sees", SEES)
def test_events_with_a_horizon_of_one_are_the_stepwise_samples_to_the_bit(sees, settings):
    data, pi = LAWS["random"](), skewed(5)
    chain, noise = uneven_chain(3), noise_law(pi)
    exact = ExactData(data, chain, pi, SEES[sees])
    start = initial_tokens(torch.arange(2000), 3, 5, seed=61, noise=noise)
    options = {"seed": 62, "noise": noise, "vocab_size": 5}
    by_events = SamplingConfig(event_driven=True, horizon=1, **SETTINGS[settings])
    events = denoise_by_events(exact, chain, start, by_events, **options)
    stepwise = denoise(exact.one_group, chain, start, SamplingConfig(**SETTINGS[settings]), **options)
    assert torch.equal(events.tokens, stepwise.tokens)


def check_before_the_last_sweep(sees_own: bool, late: int = 0) -> None:
    """Keep-or-replace has led to the law of X_L: what is wrong there, the last sweep may mend in part."""
    data, pi, seen = LAWS["random"](), skewed(5), {}
    options = {"late": late, "observe": lambda t, x: seen.update({t: x.clone()})}
    samples(data, pi, sees_own, SETTINGS["keep or replace"], count=2 * COUNT, **options)
    assert_follows(seen[3], law_at(data, uneven_chain(3), 3, pi))


def keep_without_mixture(tokens, logits, positions, *, noise_rate, mixture, **options):
    """A step whose keep decision has the g of the data in place of that of X_t."""
    before, keep_prob = tokens.clone(), torch.empty(len(tokens), 1)
    glauber_step(tokens.clone(), logits, positions, noise_rate=noise_rate, keep_prob=keep_prob, **options)
    glauber_step(tokens, logits, positions, mixture=mixture, **{**options, "normalize": False})
    kept = torch.rand(keep_prob.shape, generator=torch.Generator().manual_seed(options["step"])) < keep_prob
    return tokens.copy_(torch.where(kept.expand_as(tokens), before, tokens))


def leave_out(name: str):
    return lambda *arguments, **options: glauber_step(*arguments, **{**options, name: None})


FAULTS = {
    "no pi": leave_out("noise"),
    "no mixture": leave_out("mixture"),
    "own token not taken out": leave_out("logit_shift"),
    "keep decision without mixture": keep_without_mixture,
    "one step late": 1,
    "a sweep late": 3,
}


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, sees, monkeypatch):
    late = FAULTS[fault] if isinstance(FAULTS[fault], int) else 0
    if late == 0:
        monkeypatch.setattr(steps, "glauber_step", FAULTS[fault])
    if fault == "own token not taken out" and sees == "leave-one-out":
        return check_before_the_last_sweep(SEES[sees])  # there is nothing to be taken out
    with pytest.raises(AssertionError, match="total variation"):
        check_before_the_last_sweep(SEES[sees], late)


@pytest.mark.parametrize("time", [1, 5, 8])
def test_the_mixture_of_leave_one_out_predictions_is_the_conditional_of_the_chain(time):
    """Both pieces of `ggm.mixture` by enumeration, at every state and position."""
    data, pi = LAWS["potts"](), skewed(3)
    chain, states = uneven_chain(4), data.states()
    alpha = chain.keep_prob(torch.tensor([time]))[0]
    seen, blind = (ExactData(data, chain, pi, sees).tables[time] for sees in (True, False))
    for i in range(4):
        if alpha[i] == 1.0:
            continue
        own = states[:, i]
        shift = leave_one_out_shift(alpha[i], pi[own])
        shifted = seen[:, i].scatter_add(1, own[:, None], shift[:, None]).log_softmax(1)
        torch.testing.assert_close(shifted, blind[:, i], rtol=0, atol=1e-9)
        expected = law_at(data, chain, time, pi).log_conditional(states, i)
        torch.testing.assert_close(log_mixture(shifted, alpha[i], pi), expected, rtol=0, atol=1e-9)


# The likelihood bound


def bounds(data: Law, exact: ExactData, pi: torch.Tensor, factored: bool = False) -> torch.Tensor:
    def conditionals(tokens, positions, times):
        found = exact.at(tokens, positions, times, times + positions.shape[1])
        if factored:
            head = LinearLogits(found.logits, torch.eye(data.vocab_size), None)
            found = found._replace(logits=head)
        return found

    return chain_bound(
        conditionals,
        exact.chain,
        data.sample(3000, seed=5),
        LikelihoodConfig(times=10**6, seed=3, batch=512),
        vocab_size=data.vocab_size,
        noise=noise_law(pi),
    )


@pytest.mark.parametrize("noise", [uniform, skewed])
@pytest.mark.parametrize("sees", SEES)
def test_the_bound_is_tight_and_above_with_a_fault(sees, noise):
    data, chain = LAWS["potts"](length=3), short_chain(3)
    pi = noise(3)
    exact = bounds(data, ExactData(data, chain, pi, SEES[sees]), pi)
    assert_mean(exact, entropy(data) + prior_gap(data, chain, pi))
    for late in (1, 3):
        assert_above(bounds(data, ExactData(data, chain, pi, SEES[sees], late), pi), exact)


@pytest.mark.parametrize("sees", SEES)
def test_the_bound_of_a_long_vocabulary_is_that_from_draws(sees, monkeypatch):
    data, pi, chain = LAWS["random"](length=3), skewed(5), short_chain(3)
    exact = ExactData(data, chain, pi, SEES[sees])
    summed = bounds(data, exact, pi, factored=True)
    for module in (likelihood, log_conditionals):
        monkeypatch.setattr(module, "SUMMED_VOCABULARY", 4)
    drawn = bounds(data, exact, pi, factored=True)
    assert_mean(drawn, entropy(data) + prior_gap(data, chain, pi))
    gap = drawn - summed  # of the same noise
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / math.sqrt(len(gap)) and float(gap.std()) > 0
