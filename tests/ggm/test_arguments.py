"""What the calls of `GGM` are given is checked at the call, in one line that names it."""

import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, MaskedConfig, ReDenoise, SamplingConfig
from ggm.evaluation.config import HeldOutConfig, LikelihoodConfig
from ggm.evaluation.held_out import held_out
from ggm.evaluation.likelihood import likelihood

LENGTH, VOCAB = 6, 4
TOKENS = torch.zeros(3, LENGTH, dtype=torch.int64)
FROZEN = torch.zeros(3, LENGTH, dtype=torch.bool)


@pytest.fixture(scope="module", params=["masked", "hollow"])
def model(request):
    config = {"width": 8, "depth": 1, "heads": 1}
    backbone = MaskedConfig(**config) if request.param == "masked" else HollowConfig(mixing=1, **config)
    return GGM(GGMConfig(VOCAB, ChainConfig(LENGTH, sweeps=2), backbone))


def refused(kind: type[Exception], told: str, call, *arguments, **options) -> None:
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "kind", "told"),
    [
        (TOKENS[0], ValueError, "tokens: got shape (6,); allowed: a 2-d tensor"),
        (TOKENS[:, 1:], ValueError, "tokens: got shape (3, 5); allowed: (3, 6)"),
        (TOKENS[:0], ValueError, "tokens: got shape (0, 6); allowed: at least one sequence"),
        (TOKENS.float(), TypeError, "tokens: got dtype torch.float32; allowed: torch.int32, torch.int64"),
        (TOKENS + VOCAB, IndexError, "tokens[0, 0]: got 4; allowed: [0, 4)"),
        (TOKENS.tolist(), TypeError, "tokens: got list; allowed: a torch.Tensor"),
        (TOKENS.to("meta"), ValueError, "tokens: got device meta; allowed: cpu, the device of the weights"),
    ],
)
def test_data(tokens, kind, told, model):
    refused(kind, told, model.loss, tokens, seed=0, step=0)
    refused(kind, told, model.calibration, tokens, seed=0)


@pytest.mark.parametrize("measure", [likelihood, held_out])
@pytest.mark.parametrize(
    ("tokens", "kind", "told"),
    [
        (TOKENS[:, :3], ValueError, "tokens: got shape (3, 3); allowed: (3, 6)"),
        (TOKENS[:0], ValueError, "tokens: got shape (0, 6); allowed: at least one sequence"),
        (TOKENS.float(), TypeError, "tokens: got dtype torch.float32; allowed: torch.int32, torch.int64"),
    ],
)
def test_data_to_measure_on(tokens, kind, told, measure, model):
    config = LikelihoodConfig() if measure is likelihood else HeldOutConfig(sites_per_step=1)
    refused(kind, told, measure, model, tokens, config)


@pytest.mark.parametrize("value", [1.0, 1.5, "1", True])
def test_numbers_that_count_are_integers(value):
    told = f"{type(value).__name__}; allowed: an int"
    for name in ("sites_per_step", "corrector_sweeps", "horizon"):
        refused(TypeError, f"{name}: got {told}", SamplingConfig, **{name: value})
    refused(TypeError, f"sweeps: got {told}", ReDenoise, value)
    refused(TypeError, f"repeats: got {told}", ReDenoise, 1, value)


@pytest.mark.parametrize(
    ("tokens", "frozen", "kind", "told"),
    [
        (TOKENS, FROZEN.long(), TypeError, "frozen: got dtype torch.int64; allowed: torch.bool"),
        (TOKENS, FROZEN[0], ValueError, "frozen: got shape (6,); allowed: (3, 6)"),
        (TOKENS, None, TypeError, "frozen: got NoneType; allowed: a torch.Tensor"),
        (TOKENS[:, 1:], FROZEN[:, 1:], ValueError, "tokens: got shape (3, 5); allowed: (3, 6)"),
        (TOKENS - 1, ~FROZEN, IndexError, "tokens[0, 0]: got -1; allowed: [0, 4)"),
        (TOKENS.float(), FROZEN, TypeError, "tokens: got dtype torch.float32"),
    ],
)
def test_what_is_given(tokens, frozen, kind, told, model):
    refused(kind, told, model.infill, tokens, frozen, seed=0)


def test_tokens_that_are_not_frozen_may_be_anything(model):
    assert torch.equal(model.infill(TOKENS - 7, FROZEN, seed=0).tokens, model.sample(3, seed=0).tokens)
    assert model.infill(TOKENS.int(), FROZEN, seed=0).tokens.dtype == torch.int64


def test_how_many(model):
    refused(ValueError, "count: got -1; allowed: 0 <= count", model.sample, -1, seed=0)
    refused(TypeError, "count: got float; allowed: an int", model.sample, 1.5, seed=0)
    ids = torch.arange(5)
    told = "sample_ids: got shape (5,); allowed: (3,)"
    refused(ValueError, told, model.sample, 3, seed=0, sample_ids=ids)
    refused(ValueError, told, model.infill, TOKENS, FROZEN, seed=0, sample_ids=ids)
    refused(ValueError, told, model.loss, TOKENS, seed=0, step=0, sample_ids=ids)
    refused(TypeError, "sample_ids: got dtype", model.sample, 5, seed=0, sample_ids=ids.float())


@pytest.mark.parametrize(
    "settings", [{}, {"sites_per_step": 4, "redenoise": ReDenoise(1)}, {"event_driven": True}]
)
def test_no_sample(settings, model):
    if settings.get("event_driven") and model.config.backbone.kind == "masked":
        pytest.skip("needs a hollow network")
    config = SamplingConfig(**settings)
    for result in (
        model.sample(0, config, seed=0),
        model.infill(TOKENS[:0], FROZEN[:0], config, seed=0),
    ):
        assert result.tokens.shape == (0, LENGTH) and result.tokens.dtype == torch.int64
        assert (result.network_evaluations, result.site_updates) == (0, 0)
        assert result.site_updates_per_second == 0.0
