"""Infilling with other frozen positions in every sequence: each is drawn as if it were alone."""

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
from ggm.sampling import visits

LENGTH, VOCAB = 8, 5
BACKBONES = {
    "masked": MaskedConfig(width=16, depth=1, heads=2),
    "hollow": HollowConfig(width=16, depth=1, mixing=1, heads=2),
    "hollow, data": HollowConfig(width=16, depth=1, mixing=1, heads=2),
    "denoiser": DenoiserConfig(width=16, depth=1, heads=2),
}
OF_DATA = ("hollow, data", "denoiser")
SETTINGS = {
    "one site": {},
    "groups": {"sites_per_step": 4},
    "all at once": {"sites_per_step": 8},
    "keep or replace": {"sites_per_step": 4, "keep_or_replace": True},
    "ReDenoise": {"sites_per_step": 4, "redenoise": ReDenoise(sweeps=1, repeats=2)},
    "correctors": {"sites_per_step": 3, "corrector_sweeps": 2, "redenoise": ReDenoise(sweeps=2)},
    "correctors on ramps": {
        "sites_per_step": 3,
        "corrector_sweeps": 1,
        "temperature": Ramp(2.0, 0.5),
        "top_p": Ramp(1.0, 0.8),
    },
    "ramps": {"sites_per_step": 4, "temperature": Ramp(2.0, 0.5), "top_p": Ramp(1.0, 0.8)},
    "events": {"event_driven": True, "keep_or_replace": True, "temperature": Ramp(2.0, 0.5)},
    "confidence": {
        "order": "confidence",
        "confidence_threshold": 0.4,
        "sites_per_step": 3,
        "keep_or_replace": True,
        "redenoise": ReDenoise(sweeps=1),
    },
    "random order": {
        "order": "random",
        "sites_per_step": 2,
        "temperature": Ramp(2.0, 0.5),
        "top_p": Ramp(1.0, 0.8),
        "redenoise": ReDenoise(sweeps=1),
    },
    "evaluations": {
        "order": "confidence",
        "evaluations_per_pass": 3,
        "redenoise": ReDenoise(sweeps=1),
    },
    "horizon": {"event_driven": True, "horizon": 3, "redenoise": ReDenoise(sweeps=1)},
}
# From nothing frozen to everything.
SHARES = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
TOKENS = torch.randint(VOCAB, (len(SHARES), LENGTH), generator=torch.Generator().manual_seed(0))
SEEDS = range(3)


def model_of(backbone: str) -> GGM:
    torch.manual_seed(0)
    chain = ChainConfig(LENGTH, sweeps=2, order="reshuffled")
    predicts = "data" if backbone in OF_DATA else "state"
    model = GGM(GGMConfig(VOCAB, chain, BACKBONES[backbone], masked_counts=(1, 4), predicts=predicts))
    for parameter in model.parameters():  # so that contexts, times and positions matter
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def masks(seed: int) -> torch.Tensor:
    return torch.rand(len(SHARES), LENGTH, generator=torch.Generator().manual_seed(seed)) < SHARES[:, None]


def assert_rows_are_those_drawn_alone(backbone: str, settings: dict) -> None:
    model, config = model_of(backbone), SamplingConfig(**settings)
    for seed in SEEDS:
        frozen = masks(seed)
        ids = 3 * torch.arange(len(SHARES)) + 1
        together = model.infill(TOKENS, frozen, config, seed=seed, sample_ids=ids)
        assert torch.equal(together.tokens[frozen], TOKENS[frozen])
        alone = [
            model.infill(TOKENS[i : i + 1], frozen[i : i + 1], config, seed=seed, sample_ids=ids[i : i + 1])
            for i in range(len(SHARES))
        ]
        assert torch.equal(together.tokens, torch.cat([result.tokens for result in alone]))
        assert together.site_updates == sum(result.site_updates for result in alone)
        if not (config.event_driven or config.confidence_threshold):
            assert together.network_evaluations == max(result.network_evaluations for result in alone)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_row_does_not_depend_on_the_others(backbone, settings):
    if backbone == "masked" and "event_driven" in SETTINGS[settings]:
        pytest.skip("needs a hollow network")
    if backbone not in OF_DATA and "order" in SETTINGS[settings]:
        pytest.skip("needs a network that predicts the data everywhere")
    assert_rows_are_those_drawn_alone(backbone, SETTINGS[settings])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_groups_of_positions_that_another_row_needs_are_noticed(backbone, monkeypatch):
    """Groups of all positions that some sequence does not have frozen: with one site no harm, with more."""
    real = visits.OwnVisits.of

    def shared(chain, frozen=None):
        return real(chain, None if frozen is None else frozen.all(dim=0).expand_as(frozen))

    monkeypatch.setattr(visits.OwnVisits, "of", shared)
    with pytest.raises(AssertionError):
        assert_rows_are_those_drawn_alone(backbone, SETTINGS["groups"])


@pytest.mark.parametrize("backbone", ["masked", "hollow"])
def test_a_given_token_is_shown_whatever_is_drawn_in_other_rows(backbone):
    model, frozen = model_of(backbone), torch.zeros(2, LENGTH, dtype=torch.bool)
    frozen[0, :-1] = True
    (group, *_) = reversed(list(visits.OwnVisits.of(model.chain, frozen).groups(LENGTH)))
    assert group.positions[0, 0] == LENGTH - 1
    hidden = []
    for token in range(VOCAB):
        given = TOKENS[:2].clone()
        given[0, 0] = token
        hidden.append(model.conditionals(frozen)(given, group.positions, group.time).hidden[0, 0])
    assert len(torch.stack(hidden).unique(dim=0)) == VOCAB


@pytest.mark.parametrize("settings", ["one site", "random order", "events"])
def test_progress_is_told_where_all_is_given(settings, capsys):
    frozen = torch.ones_like(TOKENS, dtype=torch.bool)
    config = SamplingConfig(**SETTINGS[settings])
    found = model_of("hollow, data").infill(TOKENS, frozen, config, seed=0, progress=True)
    assert torch.equal(found.tokens, TOKENS)
    assert capsys.readouterr().err.startswith("sampling: 100%, ")


def test_observed_times_are_those_that_every_row_has_been_led_back_to():
    frozen = torch.zeros(2, LENGTH, dtype=torch.bool)
    frozen[0, 1:] = True
    times = []
    model_of("masked").infill(
        TOKENS[:2],
        frozen,
        SamplingConfig(sites_per_step=4),
        seed=0,
        observe=lambda time, tokens: times.append(time),
    )
    own = model_of("masked").chain.positions.view(2, LENGTH).argsort(dim=1)[:, 0] + torch.tensor([0, LENGTH])
    # While the second row undoes the last visits of a sweep, the first waits at its end.
    assert times == [16, 16, int(own[1]), 8, int(own[0])]
