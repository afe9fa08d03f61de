"""Infilling by `GGM` itself, its network replaced by exact conditionals: the law of what is drawn given the rest."""

import pytest
import torch
from enumerable import LAWS, Law, assert_follows, skewed

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    ReDenoise,
    SamplingConfig,
)
from ggm.backbones import HollowTransformer
from ggm.chain import Chain
from ggm.sampling import visits
from ggm.sampling.visits import OwnVisits

COUNT = 40_000
DATA = LAWS["potts"]()  # four positions, three tokens
PI = skewed(3)
# Other positions, and another number of them, in every sequence.
MASKS = torch.tensor(
    [[True, True, False, True], [False, True, True, False], [True, False, False, False], [False] * 4]
)


class Exact(HollowTransformer):
    """Exact P(X_i = . | X_{-S}) of noised data; S is what is to be predicted, or i alone if it is hollow.

    With `of_data` it is that of the data token at i; a denoiser's has seen the token that stands there, too.
    """

    def __init__(self, kind: str) -> None:
        torch.nn.Module.__init__(self)
        self.hides_group, self.sees_own = kind == "masked", kind == "denoiser"
        self.of_data = kind in ("denoiser", "hollow, data")
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("weight", torch.eye(3))

    head_weight = property(lambda self: self.weight)

    def forward(self, tokens, positions, time, keep_prob):
        if positions is None:
            positions = torch.arange(4).expand(len(tokens), -1)
        result = torch.empty(*positions.shape, 3)
        for of in alike(torch.cat([keep_prob, positions.double()], dim=1)):
            row = keep_prob[of[0]]
            asked = positions[of[0]].tolist()
            for place, position in enumerate(asked):
                keep = row.clone()
                alpha = float(keep[position])
                keep[position] = 1.0 if self.of_data else alpha
                law = DATA.noised(keep.tolist(), PI)
                hidden = set(asked) - {position} if self.hides_group else set()
                table = conditional(law, position, hidden).expand(law.probs.shape)
                flat = table.movedim(position, -1).reshape(-1, 3)
                others = [i for i in range(4) if i != position]
                index = (tokens[of][:, others] * torch.tensor([9, 3, 1])).sum(1)
                probs = flat[index]
                if self.sees_own:
                    own = tokens[of, position]
                    probs = probs * (
                        alpha * torch.nn.functional.one_hot(own, 3) + (1 - alpha) * PI[own][:, None]
                    )
                result[of, place] = probs.log().float()
        return result


def alike(rows: torch.Tensor) -> list[torch.Tensor]:
    """Indices of the rows of each kind."""
    left, groups = torch.arange(len(rows)), []
    while len(left):
        same = (rows[left] == rows[left[0]]).all(1)
        groups.append(left[same])
        left = left[~same]
    return groups


def conditional(law: Law, position: int, hidden: set[int]) -> torch.Tensor:
    """P(X_i = . | the others but the hidden ones), of the shape of the law with size 1 where hidden."""
    probs = law.probs.sum(tuple(hidden), keepdim=True) if hidden else law.probs
    return probs / probs.sum(position, keepdim=True)


def model_of(kind: str) -> GGM:
    chain = ChainConfig(length=4, sweeps=3, order="reshuffled", final_keep=1e-9)
    network = {"masked": MaskedConfig, "denoiser": DenoiserConfig}.get(kind, HollowConfig)(width=4, heads=1)
    predicts = "data" if kind in ("denoiser", "hollow, data") else "state"
    noise = tuple(PI.tolist())
    model = GGM(GGMConfig(3, chain, network, masked_counts=(1,), noise_probs=noise, predicts=predicts))
    model.backbone = Exact(kind)
    return model


def infilled_law(chain: Chain, frozen: torch.Tensor, sites: int, hides_group: bool) -> Law:
    """Law of the data with what is not frozen drawn anew, carried through the groups of one sequence alone."""
    probs = DATA.noised(frozen.double().tolist(), PI).probs
    for sweep in reversed(range(chain.sweeps)):
        steps = range(sweep * 4, sweep * 4 + 4)
        own = [step for step in steps if not frozen[chain.positions[step]]]
        for group in reversed([own[i : i + sites] for i in range(0, len(own), sites)]):
            keep_prob = chain.keep_prob(torch.tensor([group[0]]))[0].masked_fill(frozen, 1.0)
            law = DATA.noised(keep_prob.tolist(), PI)
            drawn = {int(chain.positions[step]) for step in group}
            tables = [conditional(law, i, drawn - {i} if hides_group else set()) for i in drawn]
            if hides_group:
                probs = probs.sum(tuple(drawn), keepdim=True)
                for table in tables:
                    probs = probs * table
            else:
                probs = all_at_once(probs, dict(zip(drawn, tables, strict=True)))
    return Law(probs)


def all_at_once(probs: torch.Tensor, tables: dict[int, torch.Tensor]) -> torch.Tensor:
    """Law after positions were drawn at once, each given all others as they were before."""
    states = DATA.states()
    new = torch.zeros_like(probs.flatten())
    changes = torch.cartesian_prod(*[torch.arange(3)] * len(tables)).view(-1, len(tables))
    for change in changes:
        mass, after = probs.flatten().clone(), states.clone()
        for (position, table), token in zip(tables.items(), change, strict=True):
            there = states.clone()
            there[:, position] = token
            mass *= table[tuple(there.T)]
            after[:, position] = token
        new.index_add_(0, DATA.index(after), mass)
    return new.view(probs.shape)


def infilled(kind: str, config: SamplingConfig, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Data with what is not frozen drawn anew by `GGM.infill`, and which of the masks each sequence has."""
    which = torch.arange(COUNT) % len(MASKS)
    data = DATA.sample(COUNT, seed=seed)
    return model_of(kind).infill(data, MASKS[which], config, seed=seed).tokens, which


def assert_follows_what_enumeration_says(kind: str, config: SamplingConfig) -> None:
    tokens, which = infilled(kind, config)
    for number, frozen in enumerate(MASKS):
        chain, sites = model_of(kind).chain, config.sites_per_step
        assert_follows(tokens[which == number], infilled_law(chain, frozen, sites, kind == "masked"))


@pytest.mark.parametrize("process", [False, True], ids=["heat bath", "keep or replace"])
@pytest.mark.parametrize("kind", ["masked", "hollow", "hollow, data", "denoiser"])
def test_one_site_per_step_gives_the_data_law(kind, process):
    tokens, which = infilled(kind, SamplingConfig(keep_or_replace=process))
    assert_follows(tokens, DATA)
    for number in range(len(MASKS)):
        assert_follows(tokens[which == number], DATA)


@pytest.mark.parametrize("sites", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["masked", "hollow"])
def test_groups_give_what_enumeration_says(kind, sites):
    assert_follows_what_enumeration_says(kind, SamplingConfig(sites_per_step=sites))


def test_enumeration_of_one_site_gives_the_data_law():
    chain = model_of("masked").chain
    for frozen in MASKS:
        for kind in (True, False):
            law = infilled_law(chain, frozen, 1, kind)
            torch.testing.assert_close(law.probs, DATA.probs, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", ["masked", "hollow"])
def test_groups_of_positions_that_another_row_needs_are_noticed(kind, monkeypatch):
    real = visits.OwnVisits.of

    def shared(chain, frozen=None):
        return real(chain, None if frozen is None else frozen.all(dim=0).expand_as(frozen))

    monkeypatch.setattr(visits.OwnVisits, "of", shared)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows_what_enumeration_says(kind, SamplingConfig(sites_per_step=3))


@pytest.mark.parametrize("process", [False, True], ids=["heat bath", "keep or replace"])
def test_events_with_a_horizon_of_one_give_the_data_law(process):
    config = SamplingConfig(event_driven=True, horizon=1, keep_or_replace=process)
    tokens, which = infilled("hollow", config)
    for number in range(len(MASKS)):
        assert_follows(tokens[which == number], DATA)


@pytest.mark.parametrize("process", [False, True], ids=["heat bath", "keep or replace"])
@pytest.mark.parametrize("kind", ["hollow, data", "denoiser"])
def test_a_random_order_gives_the_data_law(kind, process):
    config = SamplingConfig(order="random", keep_or_replace=process, redenoise=ReDenoise(sweeps=1))
    tokens, which = infilled(kind, config)
    for number in range(len(MASKS)):
        assert_follows(tokens[which == number], DATA)


def test_a_random_order_notices_an_own_token_counted_twice(monkeypatch):
    config = SamplingConfig(order="random", redenoise=ReDenoise(sweeps=1))
    real = GGM._shift
    monkeypatch.setattr(GGM, "_shift", lambda *arguments: -real(*arguments))
    tokens, _ = infilled("denoiser", config)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(tokens, DATA)


def test_events_notice_a_time_one_step_late(monkeypatch):
    real = OwnVisits.times
    monkeypatch.setattr(OwnVisits, "times", lambda own, left: real(own, left) + 1)
    tokens, _ = infilled("hollow", SamplingConfig(event_driven=True, horizon=1))
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(tokens, DATA)
