import dataclasses
import math

import pytest
import torch
from small_runs import trained
from torch.optim.swa_utils import AveragedModel

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, ObjectiveConfig, TrainingConfig, train
from ggm.data.digits import load_digits
from ggm.evaluation import copied_share, frechet_distance, nearest_differences
from ggm.training.config import read_config


def tiny() -> GGM:
    torch.manual_seed(0)
    return GGM(
        GGMConfig(
            vocab_size=3,
            chain=ChainConfig(length=4, sweeps=2),
            backbone=MaskedConfig(width=16, depth=1, heads=2),
            objective=ObjectiveConfig(noise_ratio=10.0),
            masked_counts=(1, 2),
        )
    )


# Two sequences only: what is learnt shows in the samples.
DATA = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]]).repeat(32, 1)
CONFIG = TrainingConfig(steps=150, batch_size=32, learning_rate=1e-2, ema_decay=0.9)


def test_training_reaches_the_data_and_is_reproducible():
    first, second = (train(tiny(), DATA, CONFIG) for _ in range(2))
    assert first.steps == 150
    assert first.loss == second.loss
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    samples = first.model.sample(200, seed=1).tokens
    assert copied_share(samples, DATA) > 0.9
    assert len(samples.unique(dim=0)) >= 2
    assert (first.model.calibration(DATA, seed=2).mean() - 1).abs() < 0.1


def test_training_ends_with_its_time():
    result = train(tiny(), DATA, TrainingConfig(seconds=0.2, batch_size=8))
    assert 0.2 <= result.seconds < 60  # a busy machine may take long for a step
    assert result.steps >= 1


def test_training_needs_a_budget():
    with pytest.raises(ValueError, match="budget"):
        TrainingConfig()


def test_training_stops_at_the_first_loss_that_is_not_finite():
    model = tiny()
    # Weights explode with the first step.
    config = TrainingConfig(steps=9, batch_size=4, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"^step 2: loss .*; sample ids \d+, \d+, \d+, \d+$"):
        train(model, DATA, config)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_run_and_training_in_memory_make_the_same_steps(tmp_path):
    result = trained(tmp_path)
    averaged, weights = (
        GGM.from_pretrained(result.checkpoint, weights=kind) for kind in ("averaged", "training")
    )
    config = read_config(tmp_path / "run.yaml").training
    torch.manual_seed(config.seed)
    model = GGM(averaged.config)
    in_memory = train(model, load_digits(levels=4).train, config)
    for ours, theirs in ((in_memory.model, averaged), (model, weights)):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    other = train(
        model, load_digits(levels=4).train, dataclasses.replace(config, clip=0.01)
    ).model.state_dict()
    assert not all(torch.equal(value, expected[name]) for name, value in other.items())


def test_gradients_of_an_earlier_backward_pass_do_not_count():
    config = TrainingConfig(steps=2, batch_size=4, learning_rate=1e-2)
    fresh, used = tiny(), tiny()
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected, found = (train(model, DATA, config).model.state_dict() for model in (fresh, used))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_gives_no_average_that_is_not_finite(monkeypatch):
    update = AveragedModel.update_parameters

    def spoilt(self, model):
        update(self, model)
        self.module.backbone.bias.data[0] = math.nan

    monkeypatch.setattr(AveragedModel, "update_parameters", spoilt)
    with pytest.raises(FloatingPointError, match="step 3: got averaged weights that are not finite"):
        train(tiny(), DATA, TrainingConfig(steps=3, batch_size=4))


def test_frechet_distance_of_normal_laws():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    # Centre and whiten, so that the moments are exact.
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    spread = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    expected = shift.square().sum() + (spread - 1).square().sum()
    assert math.isclose(frechet_distance(white * spread + shift, white), expected, rel_tol=1e-6)
    assert abs(frechet_distance(white, white)) < 1e-6


def test_frechet_distance_of_laws_without_full_rank():
    images = torch.zeros(10, 5, dtype=torch.int64)
    images[:, 0] = torch.arange(10)
    assert abs(frechet_distance(images, images)) < 1e-6


def test_copies_and_nearest_differences():
    reference = torch.tensor([[0, 1, 2, 3], [3, 3, 3, 3]])
    samples = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 3], [3, 0, 0, 1]])
    assert nearest_differences(samples, reference).tolist() == [0, 1, 3]
    assert copied_share(samples, reference) == pytest.approx(1 / 3)
