"""AdamW, learning-rate schedule, averaged weights, and the share of the budget that is spent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ggm.model import GGM
from ggm.training.average import go_on, start_average
from ggm.training.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


@contextmanager
def options_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let an optimiser load moments without the betas and the weight decay of those who made them."""
    kept = [{key: group[key] for key in ("betas", "weight_decay")} for group in optimizer.param_groups]
    yield
    for group, values in zip(optimizer.param_groups, kept, strict=True):
        group.update(values)


def averaged_model(model: GGM, decay: float) -> AveragedModel:
    """Average of a model's weights; one that goes on if they are one, and the model gets the others."""
    training, model.training_weights = model.training_weights, None
    averaged = start_average(model, decay)
    if training is not None:
        model.load_state_dict(training)
        go_on(averaged)
    return averaged


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, done: float) -> None:
    """Set the learning rate for when a share `done` of the run is over."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * _rate(done, config)


def share_done(config: TrainingConfig, steps: int, elapsed: float) -> float:
    """Share of the budget that so many steps and seconds have spent, up to 1."""
    by_steps = 0.0 if config.steps is None else steps / config.steps
    return min(1.0, max(by_steps, elapsed / config.seconds))


def _rate(done: float, config: TrainingConfig) -> float:
    """Learning rate relative to its peak when a share `done` of the run is over."""
    if done < config.warmup:
        # Never 0, so that the first step counts; runs of few steps may never see the peak.
        return max(done / config.warmup, 0.01)
    progress = (done - config.warmup) / (1.0 - config.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_share + (1.0 - config.final_share) * cosine
