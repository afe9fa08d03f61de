"""Training of any system: optimiser, average of weights and order of data as in `ggm.train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.quality.system import clock
from ggm.data.batches import Batch, index_batches
from ggm.training.average import start_average
from ggm.training.checkpoints import TrainingState
from ggm.training.config import TrainingConfig
from ggm.training.optimizer import make_optimizer, share_done
from ggm.training.step import OneProcess, StepNumbers, Trainer, check_finite


@dataclass(frozen=True)
class Fitted:
    """What a training gives: system with averaged weights, steps, seconds, mean loss of the last tenth."""

    system: Any
    steps: int
    seconds: float
    loss: float


def fit(system: nn.Module, data: torch.Tensor, config: TrainingConfig) -> Fitted:
    """Train a system on sequences int64 [N, L] on its device.

    Raises
    ------
    FloatingPointError
        If the loss or its gradient is not finite: tells the step.
    """
    averaged = start_average(system, config.ema_decay)
    state = TrainingState(system, averaged, make_optimizer(system, config))  # type: ignore[arg-type]
    size = min(config.batch_size, len(data))
    batches = index_batches(len(data), size, seed=config.seed)
    trainer = Trainer(state, config, OneProcess(data.device), system.loss, state.optimizer, size)
    losses: list[float] = []

    def check(numbers: StepNumbers) -> None:
        losses.append(float(numbers.loss))
        check_finite(len(losses), losses[-1], float(numbers.gradient_norm), numbers.sample_ids)

    started, done, seconds = clock(data.device), 0.0, 0.0
    while done < 1.0:
        ids = next(batches).to(data.device)
        trainer.step(Batch(ids, data[ids]), done, check)
        seconds = clock(data.device) - started
        done = share_done(config, state.step, seconds)
    recent = losses[-max(1, len(losses) // 10) :]
    return Fitted(averaged.module.eval(), state.step, seconds, sum(recent) / len(recent))
