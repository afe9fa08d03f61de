"""A denoiser of uniform diffusion, sampled by Glauber dynamics: its bias by enumeration, and samples of it."""

import re
from pathlib import Path

import pytest
import torch
from enumerable import LAWS, Law, assert_follows, noise_law, skewed, uniform
from exact_data import posterior_table

from ggm import ChainConfig, SamplingConfig, from_denoiser
from ggm.converted import ConvertedDenoiser
from ggm.mixture import log_mixture

SWEEPS = (2, 4, 8, 16)


class ExactDenoiser(torch.nn.Module):
    """P(X_{0,i} = . | X) where every token is data with probability 1 - time, by enumeration."""

    def __init__(self, data: Law, pi: torch.Tensor, factored: bool = False) -> None:
        super().__init__()
        self.data, self.pi, self.factored = data, pi, factored
        self.tables: dict[float, torch.Tensor] = {}

    def forward(self, tokens, time):
        logits = torch.empty(*tokens.shape, self.data.vocab_size)
        for value in time.unique().tolist():
            if value not in self.tables:
                keep = torch.full((self.data.length,), 1.0 - value, dtype=torch.float64)
                self.tables[value] = posterior_table(self.data, keep, self.pi, sees_own=True).float()
            of = time == value
            logits[of] = self.tables[value][self.data.index(tokens[of])]
        return (logits, torch.eye(self.data.vocab_size)) if self.factored else logits


def converted(data: Law, pi: torch.Tensor, sweeps: int, factored: bool = False) -> ConvertedDenoiser:
    chain = ChainConfig(data.length, sweeps=sweeps, final_keep=1e-4)
    return from_denoiser(ExactDenoiser(data, pi, factored), data.vocab_size, chain, noise=noise_law(pi))


def sampled_law(model: ConvertedDenoiser, data: Law, pi: torch.Tensor, keep_or_replace: bool) -> Law:
    """Law of its samples, one site a step, carried through the chain state by state."""
    states, chain, vocab_size = data.states(), model.chain, data.vocab_size
    conditionals, probs = model.conditionals(), pi[states].prod(1)
    for step in reversed(range(chain.steps)):
        i, rate = int(chain.positions[step]), float(chain.noise_rate[step])
        given = conditionals(states, torch.tensor([i]), step)
        own = states[:, i : i + 1]
        logits = given.logits[:, 0].double().scatter_add(1, own, given.logit_shift)
        conditional = log_mixture(logits.log_softmax(1), given.keep_prob, pi).exp()
        stays = torch.zeros(len(states), dtype=torch.float64)
        if keep_or_replace:
            odds = conditional.gather(1, own)[:, 0] * (1 - rate) / rate / pi[own[:, 0]]
            stays = odds / (1 + odds)
        after = probs * stays
        power = vocab_size ** (data.length - 1 - i)
        for token in range(vocab_size):
            to = torch.arange(len(states)) + (token - own[:, 0]) * power
            after.index_add_(0, to, probs * (1 - stays) * conditional[:, token])
        probs = after
    return Law(probs.view(data.probs.shape))


def bias(name: str, sweeps: int, keep_or_replace: bool, noise=uniform) -> float:
    data = LAWS[name]()
    pi = noise(data.vocab_size)
    law = sampled_law(converted(data, pi, sweeps), data, pi, keep_or_replace)
    return float(0.5 * (law.probs - data.probs).abs().sum())


@pytest.mark.parametrize(("name", "row"), [("ising", "Ising"), ("potts", "Potts"), ("random", "random")])
@pytest.mark.parametrize("keep_or_replace", [False, True], ids=["heat bath", "keep or replace"])
def test_the_bias_that_the_page_gives_falls_with_the_sweeps(name, row, keep_or_replace):
    page = (Path(__file__).parents[2] / "docs" / "mathematics.md").read_text()
    process = "keep or replace" if keep_or_replace else "heat bath"
    told = re.search(rf"^\| {row}[^|]*\| {process} \|(.*)\|$", page, re.MULTILINE)[1].split("|")
    found = [bias(name, sweeps, keep_or_replace) for sweeps in SWEEPS]
    assert found == sorted(found, reverse=True)
    for value, number in zip(found, told, strict=True):
        assert float(number) == pytest.approx(value, abs=0.0005)


@pytest.mark.parametrize("settings", [{}, {"keep_or_replace": True}])
@pytest.mark.parametrize("factored", [False, True])
def test_samples_follow_what_enumeration_says(factored, settings):
    data, pi = LAWS["random"](), skewed(5)
    model = converted(data, pi, 2, factored)
    expected = sampled_law(converted(data, pi, 2), data, pi, bool(settings))
    tokens = model.sample(40_000, SamplingConfig(**settings), seed=1).tokens
    assert_follows(tokens, expected)
    with pytest.raises(AssertionError, match="total variation"):  # the bias of two sweeps is seen
        assert_follows(tokens, data)


def test_events_infilling_and_groups():
    data, pi = LAWS["potts"](), uniform(3)
    model = converted(data, pi, 4, factored=True)
    stepwise = model.sample(200, SamplingConfig(keep_or_replace=True), seed=1).tokens
    by_events = SamplingConfig(keep_or_replace=True, event_driven=True, horizon=1)
    assert torch.equal(model.sample(200, by_events, seed=1).tokens, stepwise)
    given = data.sample(200, seed=2)
    frozen = torch.rand(given.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    filled = model.infill(given, frozen, SamplingConfig(sites_per_step=2), seed=1).tokens
    assert torch.equal(filled[frozen], given[frozen])


def test_a_plain_function_and_a_wrong_vocabulary():
    model = from_denoiser(lambda tokens, time: torch.zeros(*tokens.shape, 3), 3, ChainConfig(4))
    assert model.sample(5, seed=0).tokens.shape == (5, 4)
    with pytest.raises(ValueError, match="vocab_size: got 0; allowed: 1 or more"):
        from_denoiser(lambda tokens, time: tokens, 0, ChainConfig(4))


@pytest.mark.parametrize("event_driven", [False, True])
@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (
            (2, 4, 4),
            r"logits of shape \(2, 4, 4\); allowed: \(2, 4, 3\), those of .* slice off what a mask has$",
        ),
        ((2, 4, 2), r"logits of shape \(2, 4, 2\); allowed: \(2, 4, 3\)$"),
        ((2, 3, 3), r"logits of shape \(2, 3, 3\); allowed: \(2, 4, 3\)$"),
        ((2, 4), r"logits of shape \(2, 4\); allowed: \(2, 4, 3\)"),
        (((2, 4, 6), (4, 6)), r"a weight of shape \(4, 6\); allowed: \(3, 6\), those of .* slice off"),
        (((2, 4, 6), (3, 5)), r"a weight of shape \(3, 5\); allowed: \(3, 6\)$"),
        (((2, 3, 6), (3, 6)), r"hidden of shape \(2, 3, 6\); allowed: \(2, 4, d\)"),
    ],
)
def test_predictions_that_are_not_of_the_vocabulary_are_refused(shape, told, event_driven):
    given = tuple(map(torch.zeros, shape)) if isinstance(shape[0], tuple) else torch.zeros(shape)
    model = from_denoiser(lambda tokens, time: given, 3, ChainConfig(4))
    with pytest.raises(ValueError, match=f"^denoiser: got {told}"):
        model.sample(2, SamplingConfig(event_driven=event_driven), seed=0)
