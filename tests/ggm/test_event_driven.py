"""`GGM.sample` and `GGM.infill` from event to event: the samples of the stepwise sampler, and the times asked for."""

import pytest
import torch

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    Ramp,
    ReDenoise,
    SamplingConfig,
)
from ggm.sampling.visits import OwnVisits

LENGTH, SWEEPS, VOCAB, COUNT = 7, 3, 4, 6
STEPS = LENGTH * SWEEPS
SETTINGS = {
    "heat bath": {},
    "keep or replace": {"keep_or_replace": True},
    "filters": {"top_k": 3, "top_p": Ramp(1.0, 0.7), "min_p": 0.02, "temperature": Ramp(1.5, 0.5)},
    "ReDenoise": {"keep_or_replace": True, "redenoise": ReDenoise(sweeps=2, repeats=2)},
}
TOKENS = torch.randint(VOCAB, (COUNT, LENGTH), generator=torch.Generator().manual_seed(0))
FROZEN = torch.rand(COUNT, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.4


NETWORKS = {
    "hollow": (HollowConfig(width=16, depth=1, mixing=1, heads=2), "state"),
    "hollow, data": (HollowConfig(width=16, depth=1, mixing=1, heads=2), "data"),
    "denoiser": (DenoiserConfig(width=16, depth=1, heads=2), "data"),
}


def model_of(network: str = "hollow", blind_to_time: bool = False) -> GGM:
    torch.manual_seed(0)
    chain = ChainConfig(LENGTH, sweeps=SWEEPS, order="reshuffled")
    backbone, predicts = NETWORKS[network]
    model = GGM(GGMConfig(VOCAB, chain, backbone, noise_probs=(0.4, 0.3, 0.2, 0.1), predicts=predicts))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if blind_to_time:
        for weight in (model.backbone.time[0].weight, model.backbone.keep.weight):
            torch.nn.init.zeros_(weight)
    return model


def draw(model: GGM, infill: bool, **settings):
    if infill:
        return model.infill(TOKENS, FROZEN, SamplingConfig(**settings), seed=2)
    return model.sample(COUNT, SamplingConfig(**settings), seed=2)


@pytest.mark.parametrize("infill", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_horizon_of_one_gives_the_stepwise_samples(network, settings, infill):
    model = model_of(network)
    stepwise = draw(model, infill, **SETTINGS[settings])
    events = draw(model, infill, event_driven=True, horizon=1, **SETTINGS[settings])
    assert torch.equal(events.tokens, stepwise.tokens)
    assert events.site_updates == stepwise.site_updates
    assert events.network_evaluations == stepwise.network_evaluations


@pytest.mark.parametrize("infill", [False, True])
@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_network_that_does_not_look_at_time_gives_the_stepwise_samples(settings, horizon, infill):
    model = model_of(blind_to_time=True)
    stepwise = draw(model, infill, **SETTINGS[settings])
    events = draw(model, infill, event_driven=True, horizon=horizon, **SETTINGS[settings])
    assert torch.equal(events.tokens, stepwise.tokens)
    assert events.network_evaluations < stepwise.network_evaluations


@pytest.fixture
def asked(monkeypatch):
    """Times [B] and keep probabilities [B, L] that the network is told, from call to call."""
    seen = []
    real = GGM.all_conditionals

    def all_conditionals(model, frozen=None):
        forward = model.backbone.forward

        def spy(tokens, positions, time, keep_prob):
            seen.append((time * STEPS, keep_prob))
            return forward(tokens, positions, time, keep_prob)

        monkeypatch.setattr(model.backbone, "forward", spy)
        return real(model, frozen)

    monkeypatch.setattr(GGM, "all_conditionals", all_conditionals)
    return seen


def test_the_network_is_told_the_time_of_the_last_step_that_it_may_serve(asked):
    model = model_of()
    draw(model, False, event_driven=True, keep_or_replace=True)
    for time, keep_prob in asked:
        assert set(time.round().long().tolist()) <= {0, LENGTH, 2 * LENGTH}
        assert torch.equal(keep_prob, model.chain.keep_prob(time.round().long()))
    times = torch.stack([time for time, _ in asked]).round().long()
    assert (times[0] == 2 * LENGTH).all() and (times.diff(dim=0) <= 0).all()
    assert (times == 0).any(0).all(), "every sequence is asked for at time 0"


@pytest.mark.parametrize("infill", [False, True])
@pytest.mark.parametrize("horizon", [1, 2])
def test_a_horizon_is_counted_in_visits_of_what_is_not_frozen(horizon, infill, asked):
    model = model_of()
    draw(model, infill, event_driven=True, horizon=horizon)
    frozen = FROZEN if infill else torch.zeros_like(FROZEN)
    for row in range(COUNT):
        own = [t for t in range(STEPS) if not frozen[row, model.chain.positions[t]]]
        times = [int(time[row].round()) for time, _ in asked]
        assert times[0] == own[-horizon]
        assert set(times) <= {*own}
        if horizon == 1:
            assert times[: len(own)] == own[::-1]


@pytest.mark.parametrize("late", [1, -1])
def test_a_time_one_step_off_is_noticed(late, monkeypatch):
    real = OwnVisits.times
    monkeypatch.setattr(OwnVisits, "times", lambda own, left: (real(own, left) + late).clamp_min(0))
    for settings in ("heat bath", "keep or replace"):
        with pytest.raises(AssertionError):
            test_a_horizon_of_one_gives_the_stepwise_samples("hollow", settings, False)


def test_a_masked_network_is_refused():
    model = GGM(GGMConfig(VOCAB, ChainConfig(LENGTH), MaskedConfig(width=8, depth=1, heads=1)))
    with pytest.raises(ValueError, match="event_driven: got a masked network; allowed: with a hollow one"):
        model.sample(1, SamplingConfig(event_driven=True), seed=0)
