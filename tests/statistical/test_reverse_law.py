"""Both reverse processes with exact conditionals return the data law, and faults are noticed."""

import pytest
import torch
from enumerable import (
    LAWS,
    ExactConditionals,
    Law,
    assert_follows,
    law_at,
    noise_law,
    skewed,
    uneven_chain,
    uniform,
)

from ggm.chain import Chain
from ggm.sampling.stepwise import LinearLogits, SamplingConfig, denoise, initial_tokens
from ggm_kernels import glauber_step, linear_glauber_step

SIZES = (10_000, 160_000)
HEAT_BATH = SamplingConfig()
KEEP_OR_REPLACE = SamplingConfig(keep_or_replace=True)
PROCESSES = {"heat bath": HEAT_BATH, "keep or replace": KEEP_OR_REPLACE}


def check_sampler(
    data: Law,
    pi: torch.Tensor,
    config: SamplingConfig,
    count: int,
    conditionals=None,
    chain: Chain | None = None,
    stop: int = 0,
) -> None:
    """Samples of `ggm.sampling.stepwise.denoise` follow the data law, and the law of X_t on the way."""
    true_chain = uneven_chain(data.length)
    start = initial_tokens(torch.arange(count), data.length, data.vocab_size, seed=21, noise=noise_law(pi))
    seen = {}
    result = denoise(
        conditionals or ExactConditionals(data, true_chain, pi),
        chain or true_chain,
        start,
        config,
        seed=22,
        noise=noise_law(pi),
        observe=lambda t, tokens: seen.update({t: tokens.clone()}) if t == stop else None,
    )
    assert_follows(seen[stop], law_at(data, true_chain, stop, pi))
    assert_follows(result.tokens, data)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("name", "noise"),
    [("ising", uniform), ("potts", uniform), ("potts", skewed), ("random", skewed)],
)
def test_exact_conditionals_return_the_data_law(name, noise, process, count):
    data = LAWS[name]()
    check_sampler(data, noise(data.vocab_size), PROCESSES[process], count, stop=data.length + 1)


@pytest.mark.parametrize("process", PROCESSES)
def test_logits_as_factors_return_the_data_law(process):
    data = LAWS["potts"]()
    exact = ExactConditionals(data, uneven_chain(data.length), uniform(3))

    def factors(tokens, positions, time):
        return LinearLogits(exact(tokens, positions, time), torch.eye(3), torch.zeros(3))

    check_sampler(data, uniform(3), PROCESSES[process], SIZES[-1], conditionals=factors)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("shift", [-1, 1, 4])
def test_sampler_notices_conditionals_of_another_time(shift, process):
    data, pi = LAWS["potts"](), uniform(3)
    chain = uneven_chain(data.length)
    wrong = ExactConditionals(data, chain, pi, shift=shift)
    with pytest.raises(AssertionError, match="total variation"):
        check_sampler(data, pi, PROCESSES[process], SIZES[-1], conditionals=wrong)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("fault", ["reversed", "other sweep"])
def test_sampler_notices_a_wrong_position_order(fault, process):
    data, pi = LAWS["potts"](), uniform(3)
    chain = uneven_chain(data.length)
    order = chain.positions.view(chain.sweeps, -1)
    order = order.flip(1) if fault == "reversed" else order.roll(1, 0)
    wrong = Chain(order, chain.noise_rate)
    with pytest.raises(AssertionError, match="total variation"):
        check_sampler(data, pi, PROCESSES[process], SIZES[-1], chain=wrong)


def test_sampler_notices_several_sites_per_step():
    data, pi = LAWS["potts"](), uniform(3)
    with pytest.raises(AssertionError, match="total variation"):
        check_sampler(data, pi, SamplingConfig(sites_per_step=2), SIZES[-1])


def test_sampler_notices_a_temperature():
    data, pi = LAWS["potts"](), uniform(3)
    with pytest.raises(AssertionError, match="total variation"):
        check_sampler(data, pi, SamplingConfig(temperature=0.9), SIZES[-1])


def _keep_or_replace_once(
    data: Law, pi: torch.Tensor, time: int, count: int, rate_fault=None, bias_fault=None, linear=False
) -> torch.Tensor:
    """X_t from exact samples of X_{t + 1} by one call of `glauber_step` (or the linear one) with a noise rate."""
    chain = uneven_chain(data.length)
    tokens = law_at(data, chain, time + 1, pi).sample(count, seed=31)
    position = chain.positions[time : time + 1]
    logits = ExactConditionals(data, chain, pi)(tokens, position, time)
    rate = chain.noise_rate[time]
    rate = rate if rate_fault is None else rate_fault(chain, time)
    law = noise_law(pi) if bias_fault is None else bias_fault
    rates = torch.full((count,), float(rate))
    arguments = {"seed": 32, "step": time, "noise_rate": rates, "noise": law}
    if linear:
        return linear_glauber_step(tokens, logits, torch.eye(data.vocab_size), position, **arguments)
    return glauber_step(tokens, logits, position, **arguments)


def check_keep_or_replace(data: Law, pi: torch.Tensor, time: int, count: int, **how) -> None:
    """One posterior step leads from the law of X_{t + 1} to the law of X_t."""
    tokens = _keep_or_replace_once(data, pi, time, count, **how)
    assert_follows(tokens, law_at(data, uneven_chain(data.length), time, pi))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("noise", [uniform, skewed])
@pytest.mark.parametrize("time", [0, 3, 4, 7])
@pytest.mark.parametrize("linear", [False, True])
def test_keep_or_replace_inverts_one_step(linear, time, noise, count):
    check_keep_or_replace(LAWS["potts"](), noise(3), time, count, linear=linear)


@pytest.mark.parametrize(
    "fault",
    [
        {"rate_fault": lambda chain, time: 1.0 - chain.noise_rate[time]},
        {"rate_fault": lambda chain, time: chain.noise_rate[time + 1]},
        {"rate_fault": lambda chain, time: chain.noise_rate[time - 1]},
        {"bias_fault": noise_law(skewed(3).flip(0))},
    ],
    ids=["sign of the offset", "eps one step late", "eps one step early", "another pi"],
)
def test_keep_or_replace_notices(fault):
    # A skewed pi and a data law that differs from it, so that keeping too much or too little shows.
    with pytest.raises(AssertionError, match="total variation"):
        check_keep_or_replace(LAWS["potts"](), skewed(3), 1, SIZES[-1], **fault)
