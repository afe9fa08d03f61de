"""Ramps: the value at every draw, and the law of what is drawn with it."""

import pytest
import torch
from laws import check_law

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, Ramp, ReDenoise, SamplingConfig
from ggm.chain import Chain
from ggm.sampling import steps as reversal
from ggm.sampling.event_driven import denoise_by_events
from ggm.sampling.stepwise import denoise

LENGTH = 4
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
CHAIN = Chain.from_config(ChainConfig(LENGTH, sweeps=1))
COUNT = 20_000


def stepwise(tokens, positions, time, visited=True):
    return LOGITS.expand(len(tokens), positions.shape[-1], -1)


def at_once(tokens, times, now):
    return LOGITS.expand(len(tokens), LENGTH, -1)


def drawn(event_driven: bool, **settings) -> torch.Tensor:
    """Tokens [COUNT, L] in the order in which they were drawn, each once."""
    start = torch.full((COUNT, LENGTH), 4)
    config = SamplingConfig(event_driven=event_driven, **settings)
    if event_driven:
        tokens = denoise_by_events(at_once, CHAIN, start, config, seed=1).tokens
    else:
        tokens = denoise(stepwise, CHAIN, start, config, seed=1).tokens
    return tokens[:, CHAIN.positions.flip(0)]


@pytest.mark.parametrize("event_driven", [False, True])
@pytest.mark.parametrize(
    ("ramp", "values"),
    [(Ramp(2.0, 0.5), [2.0, 1.5, 1.0, 0.5]), (Ramp(0.5, 2.0), [0.5, 1.0, 1.5, 2.0])],
)
def test_law_of_draws_follows_a_ramp_of_the_temperature(ramp, values, event_driven):
    tokens = drawn(event_driven, temperature=ramp)
    for column, value in zip(tokens.T, values, strict=True):
        check_law(column, (LOGITS / value).softmax(0))
    for column, value in zip(tokens.T, reversed(values), strict=True):
        with pytest.raises(AssertionError):
            check_law(column, (LOGITS / value).softmax(0))


@pytest.mark.parametrize("event_driven", [False, True])
@pytest.mark.parametrize(("ramp", "kept"), [(Ramp(1.0, 0.4), [5, 2, 1, 1]), (Ramp(0.4, 1.0), [1, 1, 2, 5])])
def test_law_of_draws_follows_a_ramp_of_the_nucleus(ramp, kept, event_driven):
    """The likeliest tokens have 0.64, 0.87, 0.95, .. of the law together; top_p is 1, 0.8, 0.6, 0.4."""
    tokens = drawn(event_driven, top_p=ramp)
    law = LOGITS.softmax(0)
    for column, count in zip(tokens.T, kept, strict=True):
        check_law(column, law * (torch.arange(5) < count))
        assert int(column.max()) == count - 1


@pytest.fixture
def temperatures(monkeypatch):
    """Temperatures of all calls, with the rows they are of."""
    seen = []
    for name in ("glauber_step", "linear_glauber_step"):
        real = getattr(reversal, name)

        def spy(tokens, *arguments, real=real, **options):
            seen.append((options["sample_ids"].tolist(), options["temperature"]))
            return real(tokens, *arguments, **options)

        monkeypatch.setattr(reversal, name, spy)
    return seen


@pytest.mark.parametrize("sites", [1, 2, 3, 8])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_first_draw_has_the_start_and_last_the_end(sweeps, sites, temperatures):
    chain = Chain.from_config(ChainConfig(8, sweeps=sweeps))
    config = SamplingConfig(sites_per_step=sites, temperature=Ramp(2.0, 1.0))
    denoise(stepwise, chain, torch.zeros(1, 8, dtype=torch.int64), config, seed=0)
    values = [value for _, value in temperatures]
    groups = sweeps * -(-8 // sites)
    expected = torch.linspace(2.0, 1.0, groups).tolist() if groups > 1 else [1.0]
    assert values == pytest.approx(expected)
    assert values[-1] == 1.0 and (groups == 1 or values[0] == 2.0)


@pytest.mark.parametrize("event_driven", [False, True])
def test_every_row_of_its_own_mask_goes_from_start_to_end(event_driven, temperatures):
    model = GGM(GGMConfig(5, ChainConfig(8, sweeps=2), HollowConfig(width=8, depth=1, mixing=1, heads=1)))
    frozen = torch.arange(8) < torch.tensor([[0], [3], [7], [8]])
    config = SamplingConfig(temperature=Ramp(2.0, 1.0), event_driven=event_driven)
    model.infill(torch.zeros(4, 8, dtype=torch.int64), frozen, config, seed=0)
    for row, free in enumerate([8, 5, 1]):
        values = [value for rows, value in temperatures if row in rows]
        values = values if event_driven else drawing(values, free)
        assert values == pytest.approx(torch.linspace(2.0, 1.0, 2 * free).tolist())
        assert values[0] == 2.0 and values[-1] == 1.0


def drawing(values: list[float], free: int) -> list[float]:
    """Those of two sweeps of eight calls in which a row with so many free positions is drawn."""
    return values[8 - free : 8] + values[16 - free : 16]


def test_redenoise_goes_back_on_the_ramp(temperatures):
    chain = Chain.from_config(ChainConfig(2, sweeps=2))
    config = SamplingConfig(temperature=Ramp(4.0, 1.0), redenoise=ReDenoise(sweeps=1))
    denoise(stepwise, chain, torch.zeros(1, 2, dtype=torch.int64), config, seed=0, vocab_size=5)
    assert [value for _, value in temperatures] == pytest.approx([4.0, 3.0, 2.0, 1.0, 2.0, 1.0])


def test_correctors_have_the_value_that_their_sweep_ended_with(temperatures):
    chain = Chain.from_config(ChainConfig(2, sweeps=2))
    settings = {"corrector_sweeps": 2, "redenoise": ReDenoise(sweeps=2)}
    config = SamplingConfig(temperature=Ramp(4.0, 1.0), **settings)
    denoise(stepwise, chain, torch.zeros(1, 2, dtype=torch.int64), config, seed=0, vocab_size=5)
    one_pass = [4.0, 3.0, *[3.0] * 4, 2.0, 1.0]
    assert [value for _, value in temperatures] == pytest.approx(2 * one_pass)


def test_correctors_have_the_value_of_each_row(temperatures):
    chain = Chain.from_config(ChainConfig(4, sweeps=2, order="raster"))
    frozen = torch.arange(4) < torch.tensor([[0], [2], [3]])
    config = SamplingConfig(temperature=Ramp(2.0, 1.0), corrector_sweeps=1)
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    denoise(stepwise, chain, tokens, config, seed=0, frozen=frozen)
    assert len(temperatures) > 3 * 4
    for row, free in enumerate([4, 2, 1]):
        values = [value for rows, value in temperatures if row in rows]
        ended = 2.0 - (free - 1) / (2 * free - 1)
        assert values[4:8] == pytest.approx([ended] * 4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": Ramp(1.0, -1.0)}, "temperature.end: got -1.0; allowed: finite and 0 <="),
        ({"temperature": Ramp(float("inf"), 1.0)}, "temperature.start: got inf"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": Ramp(1.5, 0.5)}, "top_p.start: got 1.5; allowed: finite and 0 < top_p.start <= 1"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"min_p": 2.0}, "min_p: got 2.0"),
    ],
)
def test_values_that_no_draw_can_have_are_refused_at_once(settings, told):
    with pytest.raises(ValueError, match=told):
        SamplingConfig(**settings)
