"""ReDenoise and the event-driven sampler on enumerable laws: exact where they claim it, and how far off else."""

import re
from pathlib import Path

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
from ggm.sampling import steps as reversal
from ggm.sampling.config import ReDenoise
from ggm.sampling.event_driven import denoise_by_events
from ggm.sampling.stepwise import SamplingConfig, denoise, initial_tokens

COUNT = 40_000
PROCESSES = {"heat bath": False, "keep or replace": True}


class AllAtOnce:
    """Exact conditionals of every position, [B, L, V].

    `at` tells whose time they are of: "asked", the one asked for; "visit", for each position that of its
    visit in the sweep, which is right for every step of the sweep; "start", time 0 for all, which is
    wrong but does not depend on time.
    """

    def __init__(self, data: Law, chain: Chain, pi: torch.Tensor, at: str) -> None:
        self.chain, self.at = chain, at
        states = data.states()
        exact, everywhere = ExactConditionals(data, chain, pi), torch.arange(data.length)
        self.law = data
        self.tables = torch.stack([exact(states, everywhere, t) for t in range(chain.steps)])

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        index, everywhere = self.law.index(tokens), torch.arange(self.chain.length)
        return self.tables[self.times_of(times), index[:, None], everywhere]

    def times_of(self, times: torch.Tensor) -> torch.Tensor:
        """Time [B, L] whose law position i is drawn from when times [B] are asked for."""
        if self.at == "start":
            return torch.zeros(len(times), self.chain.length, dtype=torch.int64)
        if self.at == "asked":
            return times[:, None].expand(-1, self.chain.length)
        visits = self.chain.positions.view(self.chain.sweeps, -1).argsort(1)  # rank of each position
        sweep = times // self.chain.length
        return sweep[:, None] * self.chain.length + visits[sweep]

    def one_site(
        self, tokens: torch.Tensor, positions: torch.Tensor, time: int | torch.Tensor
    ) -> torch.Tensor:
        """The same as `ggm.sampling.stepwise.denoise` asks for it."""
        rows = torch.arange(len(tokens))[:, None]
        times = self.times_of(torch.as_tensor(time).expand(len(tokens)))[rows, positions]
        return self.tables[times, self.law.index(tokens)[:, None], positions]


def event_samples(
    data: Law, pi: torch.Tensor, at: str, config: SamplingConfig, count: int = COUNT
) -> torch.Tensor:
    chain = uneven_chain(data.length)
    start = initial_tokens(torch.arange(count), data.length, data.vocab_size, seed=41, noise=noise_law(pi))
    conditionals = AllAtOnce(data, chain, pi, at)
    result = denoise_by_events(
        conditionals, chain, start, config, seed=42, noise=noise_law(pi), vocab_size=data.vocab_size
    )
    return result.tokens


def event_law(data: Law, pi: torch.Tensor, horizon: int, keep_or_replace: bool) -> Law:
    """Exact law of what the event-driven sampler returns with the conditionals of the time asked for.

    The state is a sequence and the first step that its conditionals serve; its law is carried through
    the chain step by step.
    """
    chain = uneven_chain(data.length)
    tables = AllAtOnce(data, chain, pi, "asked").tables.double().exp()
    states = data.states()
    mass = {chain.steps: law_at(data, chain, chain.steps, pi).probs.flatten()}
    for step in reversed(range(chain.steps)):
        for first in [first for first in mass if _limit(first, horizon, data.length) > step]:
            mass[step] = mass.get(step, 0) + mass.pop(first)  # served no longer: asks again
        position = int(chain.positions[step])
        own_token = states[:, position]
        power = data.vocab_size ** (data.length - 1 - position)
        changed = torch.zeros(len(states), dtype=torch.float64)
        for first, probs in mass.items():
            table = tables[_limit(first, horizon, data.length), :, position]
            own = table.gather(1, own_token[:, None])[:, 0]
            odds = own * (1 - chain.noise_rate[step]) / chain.noise_rate[step] / pi[own_token]
            resampled = probs / (1 + odds) if keep_or_replace else probs
            mass[first] = probs - resampled * (1 - own)
            for token in range(data.vocab_size):
                to = torch.arange(len(states)) + (token - own_token) * power
                changed.index_add_(0, to, resampled * table[:, token] * (own_token != token))
        mass[step - 1] = changed
    return Law(sum(mass.values()).view(data.probs.shape))


def _limit(first: int, horizon: int, length: int) -> int:
    """Last step that conditionals asked for at step `first` serve."""
    return max(first + 1 - horizon, first // length * length)


def distance(first: Law, second: Law) -> float:
    return float(0.5 * (first.probs - second.probs).abs().sum())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("noise", [uniform, skewed])
def test_conditionals_that_do_not_depend_on_time_give_the_stepwise_samples_to_the_bit(noise, process):
    data = LAWS["potts"]()
    pi, chain = noise(data.vocab_size), uneven_chain(data.length)
    conditionals = AllAtOnce(data, chain, pi, "start")
    ids = 7 * torch.arange(3000) + 5
    start = initial_tokens(ids, data.length, data.vocab_size, seed=1)
    frozen = torch.rand(len(ids), data.length, generator=torch.Generator().manual_seed(0)) < 0.2
    options = {"seed": 2, "sample_ids": ids, "frozen": frozen, "noise": noise_law(pi), "vocab_size": 3}
    settings = {"keep_or_replace": PROCESSES[process], "redenoise": ReDenoise(2, 2), "temperature": 0.9}
    stepwise = denoise(conditionals.one_site, chain, start, SamplingConfig(**settings), **options)
    for horizon in (None, 1, 3):
        config = SamplingConfig(event_driven=True, horizon=horizon, **settings)
        events = denoise_by_events(conditionals, chain, start, config, **options)
        assert torch.equal(events.tokens, stepwise.tokens)
        assert events.site_updates == stepwise.site_updates
        assert events.network_evaluations <= stepwise.network_evaluations


@pytest.mark.parametrize("process", PROCESSES)
def test_a_horizon_of_one_gives_the_stepwise_samples_to_the_bit(process):
    data, pi = LAWS["random"](), uniform(5)
    chain = uneven_chain(data.length)
    conditionals = AllAtOnce(data, chain, pi, "asked")
    start = initial_tokens(torch.arange(3000), data.length, data.vocab_size, seed=1)
    config = {"keep_or_replace": PROCESSES[process]}
    stepwise = denoise(conditionals.one_site, chain, start, SamplingConfig(**config), seed=2)
    by_events = SamplingConfig(event_driven=True, horizon=1, **config)
    events = denoise_by_events(conditionals, chain, start, by_events, seed=2)
    assert torch.equal(events.tokens, stepwise.tokens)


@pytest.mark.parametrize("count", [10_000, COUNT])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("name", "noise"), [("potts", uniform), ("random", skewed)])
def test_conditionals_of_every_positions_own_visit_return_the_data_law(name, noise, process, count):
    data = LAWS[name]()
    config = SamplingConfig(event_driven=True, keep_or_replace=PROCESSES[process])
    assert_follows(event_samples(data, noise(data.vocab_size), "visit", config, count), data)


@pytest.mark.parametrize("process", PROCESSES)
def test_conditionals_of_the_time_asked_for_are_off_by_what_enumeration_says(process):
    data, pi = LAWS["potts"](), skewed(3)
    config = SamplingConfig(event_driven=True, keep_or_replace=PROCESSES[process])
    tokens = event_samples(data, pi, "asked", config)
    assert_follows(tokens, event_law(data, pi, data.length, PROCESSES[process]))
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(tokens, data)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_error_falls_to_nothing_with_the_horizon(process):
    data, pi = LAWS["potts"](), skewed(3)
    errors = [distance(event_law(data, pi, horizon, PROCESSES[process]), data) for horizon in (4, 3, 2, 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01 and errors[-1] < 1e-6


@pytest.mark.parametrize(
    ("name", "row"), [("ising", "Ising"), ("potts", "Potts"), ("random", "random joint")]
)
def test_the_errors_that_the_pages_give_are_those(name, row):
    page = (Path(__file__).parents[2] / "docs" / "mathematics.md").read_text()
    told = re.search(rf"^\| {row}.*?\|(.*)\|$", page, re.MULTILINE)[1].split("|")
    data = LAWS[name]()
    for horizon, error in zip((1, 2, 3, data.length), told, strict=True):
        law = event_law(data, uniform(data.vocab_size), horizon, keep_or_replace=True)
        assert float(error) == pytest.approx(distance(law, data), abs=0.0005)


def redenoised(data: Law, pi: torch.Tensor, keep_or_replace: bool, count: int = COUNT):
    """Samples that were noised again by two sweeps, twice, and the states at that time in each pass."""
    chain = uneven_chain(data.length)
    config = SamplingConfig(keep_or_replace=keep_or_replace, redenoise=ReDenoise(sweeps=2, repeats=2))
    start = initial_tokens(torch.arange(count), data.length, data.vocab_size, seed=51, noise=noise_law(pi))
    noised = []
    time = 2 * data.length
    result = denoise(
        AllAtOnce(data, chain, pi, "asked").one_site,
        chain,
        start,
        config,
        seed=52,
        noise=noise_law(pi),
        vocab_size=data.vocab_size,
        observe=lambda t, tokens: noised.append(tokens.clone()) if t == time else None,
    )
    return result, noised


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("name", "noise"), [("ising", uniform), ("potts", skewed)])
def test_redenoise_returns_the_data_law(name, noise, process):
    data = LAWS[name]()
    pi, chain = noise(data.vocab_size), uneven_chain(data.length)
    result, noised = redenoised(data, pi, PROCESSES[process])
    assert len(noised) == 3  # on the way down, and after each noising
    for tokens in noised:
        assert_follows(tokens, law_at(data, chain, 2 * data.length, pi))
    assert_follows(result.tokens, data)
    assert not torch.equal(noised[1], noised[2])
    assert result.network_evaluations == (3 + 2 + 2) * data.length
    assert result.site_updates == COUNT * result.network_evaluations


@pytest.mark.parametrize("fault", ["no noise", "one sweep short", "one sweep too many", "another pi"])
def test_redenoise_notices(monkeypatch, fault):
    data, pi = LAWS["potts"](), skewed(3)
    real = reversal.renoise

    def faulty(tokens, chain, sweeps, vocab_size, **options):
        if fault == "no noise":
            return tokens.clone()
        if fault == "another pi":
            options["noise"] = noise_law(pi.flip(0))
        sweeps += {"one sweep short": -1, "one sweep too many": 1}.get(fault, 0)
        return real(tokens, chain, sweeps, vocab_size, **options)

    monkeypatch.setattr(reversal, "renoise", faulty)
    chain = uneven_chain(data.length)
    result, noised = redenoised(data, pi, keep_or_replace=True)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(noised[1], law_at(data, chain, 2 * data.length, pi))
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(result.tokens, data)


def test_a_second_pass_makes_new_draws(monkeypatch):
    """A second run from the same start must not repeat the first."""
    data, pi = LAWS["potts"](), uniform(3)
    chain = uneven_chain(data.length)
    conditionals = ExactConditionals(data, chain, pi)
    start = initial_tokens(torch.arange(1000), data.length, 3, seed=1)
    monkeypatch.setattr(reversal, "renoise", lambda *args, **options: start.clone())
    config = SamplingConfig(redenoise=ReDenoise(3))
    once = denoise(conditionals, chain, start, SamplingConfig(), seed=2, vocab_size=3).tokens
    again = denoise(conditionals, chain, start, config, seed=2, vocab_size=3).tokens
    assert (once != again).any(1).float().mean() > 0.5
