import dataclasses
import math

import pytest
import torch
from small_runs import trained
from torch.optim.swa_utils import AveragedModel

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    ObjectiveConfig,
    TrainingConfig,
    train,
)
from ggm.data.digits import load_digits
from ggm.evaluation import copied_share, frechet_distance, nearest_differences
from ggm.training.config import read_config
from ggm.training.loop import evaluate
from ggm.training.metrics import read_metrics


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


@pytest.mark.parametrize("frozen_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("backbone", [HollowConfig(16, 1, 1, 2), DenoiserConfig(16, 1, 2)])
def test_what_is_told_is_the_loss_per_predicted_token(backbone, frozen_share):
    """Networks that know nothing yet have log V for cross-entropy, however many positions are clean."""
    cross_entropy = ObjectiveConfig("cross_entropy")
    config = GGMConfig(
        3, ChainConfig(4, 2), backbone, cross_entropy, (4,), frozen_share=frozen_share, predicts="data"
    )
    model = GGM(config)
    told = evaluate(model, DATA[:15], 4)["held_out_loss"], train(model, DATA, TrainingConfig(steps=1)).loss
    assert told == pytest.approx((math.log(3), math.log(3)), rel=1e-5)
    # The loss whose gradient is followed is a mean over all rows.
    share = float(GGM(config).loss(DATA, 0, 0).detach()) / math.log(3)
    assert share == pytest.approx(float(model.counted_share(0, 0, torch.arange(len(DATA)))), rel=1e-5)
    assert share == pytest.approx(1 - 3 / 8 * frozen_share, abs=0.1)  # 3 in 4 may be clean, half of them are


def test_a_run_tells_the_loss_per_predicted_token_however_it_computes_it(tmp_path):
    network = ["model.backbone.kind=hollow", "model.masked_counts=[64]", "model.frozen_share=1.0"]
    trained(tmp_path, *network, "log_every=1", out="whole", max_steps=3)
    trained(tmp_path, *network, "log_every=1", "accumulation=4", out="parts", max_steps=3)
    whole, parts = (list(read_metrics(tmp_path / out / "metrics.jsonl")) for out in ("whole", "parts"))
    for name in ("loss", "held_out_loss"):
        assert [line[name] for line in parts] == pytest.approx([line[name] for line in whole], rel=1e-5)
    # Half of the positions are clean: of all rows the losses would be half of that.
    torch.manual_seed(3)
    model = GGM(GGM.from_pretrained(tmp_path / "whole").config)
    everywhere = dataclasses.replace(model.config, frozen_share=0.0)
    expected = float(GGM(everywhere).loss(load_digits(levels=4).train, 0, 0).detach())
    assert whole[0]["loss"] == pytest.approx(expected, rel=0.05)


def test_a_compiled_model_and_no_data_are_refused_before_a_step():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=r"^model: got OptimizedModule; allowed: a GGM itself, without torch"):
        train(torch.compile(model), DATA, CONFIG)
    with pytest.raises(ValueError, match=r"^data: got shape \(0, 4\); allowed: at least one sequence"):
        train(model, DATA[:0], CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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
