import dataclasses
import math

import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, ObjectiveConfig, SamplingConfig
from ggm.objective import FORMS

CONFIG = GGMConfig(
    vocab_size=5,
    chain=ChainConfig(length=6, sweeps=3),
    backbone=MaskedConfig(width=16, depth=2, heads=2, positions="both", grid=(2, 3)),
    masked_counts=(1, 4),
    frozen_share=0.5,
)
DATA = torch.randint(5, (9, 6), generator=torch.Generator().manual_seed(0))
NOISE = (0.4, 0.3, 0.1, 0.1, 0.1)


def ggm(**changes) -> GGM:
    torch.manual_seed(0)
    model = GGM(dataclasses.replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


OBJECTIVES = [
    ObjectiveConfig("observed"),
    ObjectiveConfig("summed", candidates=3),
    ObjectiveConfig("marginal"),
    ObjectiveConfig("cross_entropy"),
    ObjectiveConfig("marginal", candidates=2, noise_ratio=8.0),
    ObjectiveConfig("marginal", candidates=1, noise_ratio=8.0, shared_candidates=7),
    ObjectiveConfig("summed", shared_candidates=9),
]


@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_is_a_differentiable_scalar_and_a_function_of_its_coordinates(objective, noise):
    model = ggm(objective=objective, noise_probs=noise)
    loss = model.loss(DATA, seed=1, step=3)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(loss, model.loss(DATA, seed=1, step=3))
    assert not torch.equal(loss, model.loss(DATA, seed=1, step=5))
    assert not torch.equal(loss, model.loss(DATA, seed=2, step=3))


def test_forms_are_all_tried():
    assert {objective.form for objective in OBJECTIVES} == set(FORMS)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_does_not_depend_on_batch_order_or_split(objective):
    model = ggm(objective=objective)
    ids = torch.tensor([4, 0, 8, 3, 1, 7, 2, 6, 5])
    whole = model.loss(DATA, 0, 1)
    torch.testing.assert_close(model.loss(DATA[ids], 0, 1, sample_ids=ids), whole)
    parts = [model.loss(DATA[i : i + 3], 0, 1, sample_ids=torch.arange(i, i + 3)) for i in (0, 3, 6)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_exact_sum_over_the_vocabulary_is_the_limit_of_drawn_candidates():
    exact = ggm(objective=ObjectiveConfig("marginal", noise_ratio=4.0))
    drawn = ggm(objective=ObjectiveConfig("marginal", candidates=20_000, noise_ratio=4.0))
    torch.testing.assert_close(exact.loss(DATA, 0, 0), drawn.loss(DATA, 0, 0), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize("config", [None, SamplingConfig(sites_per_step=4, keep_or_replace=True)])
def test_same_seed_same_samples_in_any_batch(config, noise):
    model = ggm(noise_probs=noise)
    whole = model.sample(8, config, seed=3).tokens
    assert whole.shape == (8, 6) and whole.dtype == torch.int64
    assert whole.min() >= 0 and whole.max() < 5
    assert torch.equal(whole, model.sample(8, config, seed=3).tokens)
    assert not torch.equal(whole, model.sample(8, config, seed=4).tokens)
    parts = [
        model.sample(len(ids), config, seed=3, sample_ids=ids).tokens
        for ids in torch.arange(8).split([1, 5, 2])
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_samples_of_one_seed_differ():
    assert len(ggm().sample(20, seed=0).tokens.unique(dim=0)) > 15


def test_infill_leaves_frozen_positions_alone_and_ignores_the_others():
    model = ggm()
    frozen = torch.rand(9, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    result = model.infill(DATA, frozen, seed=0)
    assert torch.equal(result.tokens[frozen], DATA[frozen])
    assert not torch.equal(result.tokens, DATA)
    scrambled = torch.where(frozen, DATA, (DATA + 1) % 5)
    assert torch.equal(model.infill(scrambled, frozen, seed=0).tokens, result.tokens)


def test_infill_saves_the_evaluations_of_positions_that_are_frozen_everywhere():
    model = ggm()
    frozen = torch.tensor([True, True, False, True, False, True]).expand(9, -1)
    result = model.infill(DATA, frozen, seed=0)
    assert result.network_evaluations == 3 * 2
    everything = model.infill(DATA, torch.ones_like(frozen), seed=0)
    assert everything.network_evaluations == 0
    assert torch.equal(everything.tokens, DATA)


def test_frozen_positions_are_told_to_the_network():
    model = ggm()
    tokens, positions = DATA[:2], torch.tensor([1])
    frozen = torch.zeros(2, 6, dtype=torch.bool)
    frozen[:, 4] = True
    free = model.conditionals()(tokens, positions, 9).hidden
    assert not torch.equal(free, model.conditionals(frozen)(tokens, positions, 9).hidden)


def test_calibration_starts_at_one():
    torch.manual_seed(0)
    sums = GGM(CONFIG).calibration(DATA, seed=0)
    torch.testing.assert_close(sums, torch.ones(9))


def test_calibration_is_summed_in_float32_under_autocast(monkeypatch):
    model = GGM(CONFIG)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(DATA), 1, model.backbone.head_weight.shape[1], generator=generator)
    monkeypatch.setattr(model.backbone, "forward", lambda *_: hidden)
    with torch.no_grad():
        model.backbone.head_weight.normal_(generator=generator)
    expected = model.calibration(DATA, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.calibration(DATA, seed=0), expected, rtol=1e-6, atol=0)


def test_saved_and_loaded_models_agree(tmp_path):
    model = ggm(noise_probs=NOISE, objective=OBJECTIVES[-1])
    model.save_pretrained(tmp_path)
    loaded = GGM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.sample(4, seed=0).tokens, model.sample(4, seed=0).tokens)
    assert torch.equal(loaded.loss(DATA, 0, 0), model.loss(DATA, 0, 0))


@pytest.mark.parametrize(
    "bad",
    [
        {"vocab_size": 0},
        {"masked_counts": ()},
        {"masked_counts": (7,)},
        {"frozen_share": 1.5},
        {"training_times": "late"},
        {"backbone": MaskedConfig(grid=(2, 2))},
        {"backbone": MaskedConfig(width=6, heads=2, positions="rotary")},
        {"noise_probs": (0.5, math.nan, 0.5)},
        {"noise_probs": (0.5, 0.4)},
    ],
)
def test_bad_configurations_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        dataclasses.replace(CONFIG, **bad)


def test_a_law_of_other_tokens_is_refused_when_a_model_is_made():
    with pytest.raises(
        ValueError, match=r"^noise_probs: got 2 probabilities; allowed: \d, one for each token"
    ):
        ggm(noise_probs=(0.5, 0.5))


@pytest.mark.parametrize(
    "bad",
    [
        {"form": "other"},
        {"candidates": 0},
        {"noise_ratio": 0.0},
        {"form": "observed", "noise_ratio": 2.0},
        {"form": "cross_entropy", "noise_ratio": 2.0},
        {"form": "cross_entropy", "candidates": 2},
        {"form": "summed", "shared_candidates": 0},
        {"form": "marginal", "shared_candidates": 5},
        {"form": "observed", "shared_candidates": 5},
        {"form": "cross_entropy", "shared_candidates": 5},
    ],
)
def test_bad_objectives_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        ObjectiveConfig(**bad)
