import math

import pytest
import torch

from ggm.chain import ORDERS, SCHEDULES, Chain, ChainConfig, log_odds, sweep_noise_rates


def uneven_chain(length: int, sweeps: int) -> Chain:
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(sweeps)])
    return Chain(order, torch.rand(sweeps * length, generator=generator, dtype=torch.float64))


def keep_prob_by_definition(chain: Chain, time: int) -> torch.Tensor:
    keep = torch.ones(chain.length, dtype=torch.float64)
    for step in range(time):
        keep[chain.positions[step]] *= 1.0 - chain.noise_rate[step]
    return keep


@pytest.mark.parametrize(("length", "sweeps"), [(1, 1), (1, 4), (5, 1), (5, 3), (16, 2)])
def test_keep_prob_is_the_product_over_earlier_visits(length, sweeps):
    chain = uneven_chain(length, sweeps)
    times = torch.arange(chain.steps + 1)
    expected = torch.stack([keep_prob_by_definition(chain, int(t)) for t in times])
    torch.testing.assert_close(chain.keep_prob(times), expected, rtol=1e-12, atol=0)


def test_a_step_acts_on_its_own_position_and_only_after_it():
    chain = uneven_chain(5, 2)
    for step in range(chain.steps):
        before, after = chain.keep_prob(torch.tensor([step, step + 1]))
        ratio = torch.ones(5, dtype=torch.float64)
        ratio[chain.positions[step]] = 1.0 - chain.noise_rate[step]
        torch.testing.assert_close(after, before * ratio, rtol=1e-12, atol=0)


def test_nothing_is_noise_at_time_0():
    assert torch.equal(uneven_chain(4, 2).keep_prob(torch.tensor([0])), torch.ones(1, 4).double())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sweeps", [1, 2, 8])
def test_schedule_leaves_its_share_after_every_sweep(schedule, sweeps):
    config = ChainConfig(length=3, sweeps=sweeps, schedule=schedule, final_keep=0.01)
    chain = Chain.from_config(config)
    for sweep in range(sweeps + 1):
        expected = 0.01 + 0.99 * SCHEDULES[schedule](sweep / sweeps)
        keep = chain.keep_prob(torch.tensor([3 * sweep]))
        torch.testing.assert_close(keep, torch.full((1, 3), expected, dtype=torch.float64))
    rates = sweep_noise_rates(config)
    assert rates.shape == (3 * sweeps,)
    assert ((rates > 0) & (rates < 1)).all()


def test_visits_are_positions_and_rates_of_steps():
    chain = uneven_chain(4, 2)
    steps = torch.tensor([[0, 7], [3, 3]])
    positions, rate = chain.visits(steps)
    assert torch.equal(positions, chain.positions[steps])
    assert torch.equal(rate, chain.noise_rate[steps])
    torch.testing.assert_close(log_odds(rate), ((1 - rate) / rate).log())


@pytest.mark.parametrize("order", ORDERS)
def test_every_sweep_visits_every_position_once(order):
    chain = Chain.from_config(ChainConfig(length=7, sweeps=3, order=order))
    visits = chain.positions.view(3, 7)
    assert torch.equal(visits.sort(dim=1).values, torch.arange(7).expand(3, -1))
    assert torch.equal(visits[0], visits[2]) == (order != "reshuffled")
    assert (order == "raster") == torch.equal(visits[0], torch.arange(7))


@pytest.mark.parametrize("order", ["permutation", "reshuffled"])
def test_order_is_a_function_of_its_seed(order):
    first, second, other = (
        Chain.from_config(ChainConfig(length=50, order=order, order_seed=seed)).positions
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("time", [-1, 9])
def test_times_outside_the_chain_are_refused(time):
    with pytest.raises(IndexError, match=r"times: got \[-?\d\]; allowed: \[0, 8\]"):
        uneven_chain(4, 2).keep_prob(torch.tensor([time]))


def test_bad_chains_are_refused():
    rates = torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="order"):
        Chain(torch.tensor([[0, 1], [1, 1]]), rates)
    with pytest.raises(ValueError, match="noise_rate"):
        Chain(torch.tensor([[0, 1]]), rates)
    with pytest.raises(ValueError, match="noise_rate"):
        Chain(torch.tensor([[0, 1], [1, 0]]), rates + 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"length": 0},
        {"sweeps": 0},
        {"final_keep": 0.0},
        {"final_keep": math.nan},
        {"schedule": "steep"},
        {"order": "random"},
    ],
)
def test_bad_configurations_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        ChainConfig(**{"length": 4, **bad})
