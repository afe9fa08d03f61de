"""The forward process has the law that it should have, and the checks notice when it has not."""

import pytest
import torch
from enumerable import (
    LAWS,
    Law,
    assert_follows,
    assert_rates,
    keep_prob_by_hand,
    law_at,
    noise_law,
    skewed,
    uneven_chain,
    uniform,
)

from ggm.chain import Chain
from ggm_kernels import corrupt

SIZES = (10_000, 160_000)
NOISES = {"uniform": uniform, "skewed": skewed}


def noised_at_once(data: torch.Tensor, chain: Chain, time: int, pi: torch.Tensor, seed: int):
    """X_t in closed form: one call of corrupt."""
    keep_prob = chain.keep_prob(torch.full((len(data),), time)).float()
    return corrupt(data, keep_prob, len(pi), seed=seed, noise=noise_law(pi))


def noised_stepwise(data: torch.Tensor, chain: Chain, time: int, pi: torch.Tensor, seed: int):
    """X_t by the chain itself: one call of corrupt for every visit."""
    tokens = data
    for step in range(time):
        keep_prob = torch.ones(data.shape)
        keep_prob[:, chain.positions[step]] = 1.0 - chain.noise_rate[step].float()
        tokens, _ = corrupt(tokens, keep_prob, len(pi), seed=seed, step=step, noise=noise_law(pi))
    return tokens


def check_marginals(length: int, chain: Chain, time: int, alpha: torch.Tensor) -> None:
    """Every position is signal at its rate alpha, and a token that is not data is noise."""
    vocab_size = 1000
    data = torch.zeros(SIZES[-1], length, dtype=torch.int64)
    noisy, is_signal = noised_at_once(data, chain, time, uniform(vocab_size), seed=11)
    assert_rates(is_signal, alpha)
    assert_rates(noisy == 0, alpha + (1.0 - alpha) / vocab_size)


def check_law(data: Law, chain: Chain, time: int, pi: torch.Tensor, noised, count: int) -> None:
    """The noised samples follow the exact law of X_t of the uneven chain."""
    tokens = noised(data.sample(count, seed=5), chain, time, pi, seed=12)
    tokens = tokens if isinstance(tokens, torch.Tensor) else tokens[0]
    assert_follows(tokens, law_at(data, uneven_chain(data.length), time, pi))


@pytest.mark.parametrize("time", [0, 1, 5, 6, 7, 11, 12, 13, 18])
def test_positions_are_signal_at_rate_alpha(time):
    chain = uneven_chain(6)
    check_marginals(6, chain, time, torch.tensor(keep_prob_by_hand(chain, time)))


@pytest.mark.parametrize("fault", [-1, 1])
@pytest.mark.parametrize("time", [5, 6, 7, 11])
def test_marginals_notice_a_time_off_by_one(time, fault):
    chain = uneven_chain(6)
    alpha = torch.tensor(keep_prob_by_hand(chain, time + fault))
    with pytest.raises(AssertionError, match="rate off"):
        check_marginals(6, chain, time, alpha)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("noised", [noised_at_once, noised_stepwise])
def test_closed_form_and_chain_have_the_exact_law(noised, name, noise, count):
    data = LAWS[name]()
    chain = uneven_chain(data.length)
    pi = NOISES[noise](data.vocab_size)
    check_law(data, chain, data.length + 2, pi, noised, count)


def _faulty(chain: Chain, fault: str) -> Chain:
    order, rates = chain.positions.view(chain.sweeps, -1), chain.noise_rate
    return {
        "eps one step early": lambda: Chain(order, rates.roll(-1)),
        "eps one step late": lambda: Chain(order, rates.roll(1)),
        "position order reversed": lambda: Chain(order.flip(1), rates),
        "position order of another sweep": lambda: Chain(order.roll(1, 0), rates),
        "eps for 1 - eps": lambda: Chain(order, 1.0 - rates),
    }[fault]()


@pytest.mark.parametrize("noised", [noised_at_once, noised_stepwise])
@pytest.mark.parametrize(
    "fault",
    [
        "eps one step early",
        "eps one step late",
        "position order reversed",
        "position order of another sweep",
        "eps for 1 - eps",
    ],
)
def test_law_notices_a_faulty_chain(fault, noised):
    data = LAWS["potts"]()
    chain = _faulty(uneven_chain(data.length), fault)
    with pytest.raises(AssertionError, match="total variation"):
        check_law(data, chain, data.length + 2, skewed(3), noised, SIZES[-1])


@pytest.mark.parametrize("noised", [noised_at_once, noised_stepwise])
def test_law_notices_the_wrong_noise(noised):
    data = LAWS["potts"]()
    chain = uneven_chain(data.length)

    def with_uniform_noise(tokens, chain, time, pi, seed):
        return noised(tokens, chain, time, uniform(len(pi)), seed)

    with pytest.raises(AssertionError, match="total variation"):
        check_law(data, chain, data.length + 2, skewed(3), with_uniform_noise, SIZES[-1])


def test_law_notices_noise_shared_by_all_samples():
    data = LAWS["potts"]()
    chain = uneven_chain(data.length)

    def with_one_sample_id(tokens, chain, time, pi, seed):
        keep_prob = chain.keep_prob(torch.full((len(tokens),), time)).float()
        same = torch.zeros(len(tokens), dtype=torch.int64)
        return corrupt(tokens, keep_prob, len(pi), seed=seed, sample_ids=same)

    with pytest.raises(AssertionError, match="total variation"):
        check_law(data, chain, data.length + 2, uniform(3), with_one_sample_id, SIZES[0])
