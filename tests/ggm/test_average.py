"""The average of the weights: its decay grows from little to what is asked for, in every kind of training."""

import copy

import pytest
import torch
import torch.distributed as dist
from processes import finish, start
from small_runs import trained, written
from torch.optim.swa_utils import AveragedModel

from ggm import GGM, ChainConfig, GGMConfig, MaskedConfig, TrainingConfig, train
from ggm.training.average import decay_at, start_average
from ggm.training.checkpoints import find
from ggm.training.step import Trainer

DATA = torch.randint(5, (64, 6), generator=torch.Generator().manual_seed(0))
EXPECTED = {1: 2 / 11, 2: 3 / 12, 8: 9 / 18, 80: 81 / 90, 890: 0.99, 10**6: 0.99}


def model() -> GGM:
    torch.manual_seed(0)
    return GGM(GGMConfig(5, ChainConfig(6, sweeps=2), MaskedConfig(width=8, depth=1, heads=1)))


def weights_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.detach().double().clone() for value in module.parameters()]


def averages(steps: list[list[torch.Tensor]], decay: float) -> list[torch.Tensor]:
    """Average of weights after each step, by the formula."""
    mean = steps[0]
    for n, weights in enumerate(steps[1:], start=1):
        share = min(decay, (1 + n) / (10 + n))
        mean = [share * a + (1 - share) * b for a, b in zip(mean, weights, strict=True)]
    return mean


def assert_close(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def test_the_decay_is_that_of_the_formula():
    assert {n: decay_at(n, 0.99) for n in EXPECTED} == pytest.approx(EXPECTED)
    assert decay_at(8, 0.25) == 0.25


def test_training_in_memory_averages_by_the_formula(monkeypatch):
    steps = []
    update = AveragedModel.update_parameters

    def noted(self, made):
        steps.append(weights_of(made))
        update(self, made)

    monkeypatch.setattr(AveragedModel, "update_parameters", noted)
    result = train(model(), DATA, TrainingConfig(steps=30, batch_size=16, ema_decay=0.7)).model
    assert len(steps) == 30
    assert_close(weights_of(result), averages(steps, 0.7))
    assert decay_at(29, 0.7) == 0.7 > decay_at(10, 0.7)  # both sides of the minimum were met


@pytest.mark.usefixtures("fresh_accelerate")
def test_runs_average_by_the_formula_across_a_stop(tmp_path, monkeypatch):
    steps = {}
    step = Trainer.step

    def noted(self, *arguments):
        made = step(self, *arguments)
        steps[self.state.step] = weights_of(self.state.model)
        return made

    monkeypatch.setattr(Trainer, "step", noted)
    fast = ["training.learning_rate=0.02", "training.warmup=0"]
    trained(tmp_path, *fast, max_steps=7)
    result = trained(tmp_path, *fast, resume=True)
    made = [steps[n] for n in range(1, 13)]
    found = weights_of(GGM.from_pretrained(result.checkpoint))
    assert_close(found, averages(made, 0.99))
    # The comparison can fail: it is none of the weights, nor their average with another decay.
    for other in (made[0], made[-1], averages(made, 0.3)):
        assert max((a - b).abs().max() for a, b in zip(found, other, strict=True)) > 1e-3


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_sharded_averages_are_those_of_one_process(tmp_path):
    trained(tmp_path, out="one")
    log = tmp_path / "log"
    words = ["train", str(written(tmp_path, out="two")), "--set", "sharding=fsdp2", "--quiet"]
    finish(start(words, log, 2), log)
    one, two = (weights_of(GGM.from_pretrained(find(tmp_path / out))) for out in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_short_trainings_do_not_average_what_they_began_with():
    """Weights that go from 0 to 1: next to nothing is left of the 0 after 120 steps, without warm-up 30 %."""
    began = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(began.weight)
    averaged = start_average(began, 0.99)
    averaged.update_parameters(began)
    ended = copy.deepcopy(began)
    torch.nn.init.ones_(ended.weight)
    for _ in range(119):
        averaged.update_parameters(ended)
    assert 1 - averaged.module.weight.item() < 1e-6 and 0.99**119 > 0.3
