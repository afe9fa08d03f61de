"""Training: AdamW, warm-up and cosine decay, averaged weights, a budget of time or steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from ggm.data.batches import index_batches
from ggm.model import GGM
from ggm.progress import progress_bar
from ggm.training.average import go_on, start_average
from ggm_kernels.randomness import MAX_SEED


@dataclass(frozen=True)
class TrainingConfig:
    """A training run, which ends when either budget is spent.

    Attributes
    ----------
    seconds : float
        Budget of wall-clock time.
    steps : int or None
        Budget of optimiser steps; None is no limit. Runs that end by steps alone are reproducible.
    batch_size : int
        Sequences per step.
    learning_rate : float
        Peak.
    final_share : float
        Learning rate at the end, relative to the peak: 0 to 1.
    warmup : float
        Share of the run in which the learning rate rises: 0 to 1.
    betas : tuple of float
        Of AdamW, each from 0 to below 1.
    weight_decay : float
        Of AdamW, for matrices only.
    clip : float
        Largest norm of the gradient; infinity does not clip.
    ema_decay : float
        Decay of the averaged weights per step, from 0 to below 1; at first it is less
        (`ggm.training.average.decay_at`).
    seed : int
        Key of data order, chain times and noise: 0 to 2**64 - 1.
    """

    seconds: float = math.inf
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    final_share: float = 0.01
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and math.isinf(self.seconds):
            raise ValueError("seconds, steps: got no budget; allowed: at least one of them finite")
        for name in ("seconds", "learning_rate", "clip"):
            if not getattr(self, name) > 0:  # NaN, too
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed: above 0")
        if math.isinf(self.learning_rate):
            raise ValueError(f"learning_rate: got {self.learning_rate}; allowed: above 0, finite")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: got {self.weight_decay}; allowed: 0 or more, finite")
        for name in ("final_share", "warmup"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed: 0 to 1")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: got {self.ema_decay}; allowed: 0 or more, below 1")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas: got {self.betas}; allowed: 0 or more, below 1")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed: got {self.seed}; allowed: 0 to 2**64 - 1")
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}; allowed: 1 or more")


@dataclass(frozen=True)
class TrainingResult:
    """What a run gives: averaged model, steps made, seconds, mean loss of the last tenth."""

    model: GGM
    steps: int
    seconds: float
    loss: float


def train(
    model: GGM, data: torch.Tensor, config: TrainingConfig, *, progress: bool = False
) -> TrainingResult:
    """Train a model on sequences that fit into memory.

    Parameters
    ----------
    model : GGM
        Trained in place. If its weights are an average that has the weights without averaging beside it
        (`GGM.from_pretrained`), both go on from where they were: the average in the result, the others
        in `model`. The optimiser's moments start anew.
    data : torch.Tensor
        Tokens, int64 [N, L], on the model's device.
    config : TrainingConfig
        Budget and optimiser. Use another seed to train further, or the same noise is met again.
    progress : bool
        Whether to show a progress bar with loss, tokens/s and time left (needs tqdm).

    Returns
    -------
    TrainingResult
        The averaged weights are in its model, with the last ones beside them to be saved with it; the last
        ones are in `model`, too.

    Raises
    ------
    FloatingPointError
        If the loss, its gradient, or at the end a weight is not finite: tells the step. `model` is as
        the step before left it.
    """
    optimizer = make_optimizer(model, config)
    averaged = _average(model, config.ema_decay)
    batch_size = min(config.batch_size, len(data))
    batches = index_batches(len(data), batch_size, seed=config.seed)
    losses: list[float] = []
    started = time.perf_counter()
    done = 0.0
    with progress_bar(progress, 1.0, "training", bar_format=BAR_FORMAT) as bar:
        while done < 1.0:
            step = len(losses)
            set_learning_rate(optimizer, config, done)
            batch = next(batches).to(data.device)
            loss = model.loss(data[batch], config.seed, step, sample_ids=batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), config.clip)
            losses.append(float(loss.detach()))
            check_finite(step + 1, losses[-1], float(norm), batch)
            optimizer.step()
            averaged.update_parameters(model)
            elapsed = time.perf_counter() - started
            share = share_done(config, len(losses), elapsed)
            bar.set_postfix_str(_status(losses, batch_size * data.shape[1], elapsed), refresh=False)
            bar.update(share - done)
            done = share
    recent = losses[-max(1, len(losses) // 10) :]
    result = averaged.module
    assert isinstance(result, GGM)
    if not all_finite(result):
        raise FloatingPointError(f"step {len(losses)}: got averaged weights that are not finite")
    result.training_weights = {name: value.clone() for name, value in model.state_dict().items()}
    return TrainingResult(result, len(losses), elapsed, sum(recent) / len(recent))


def _average(model: GGM, decay: float) -> AveragedModel:
    """Average of a model's weights; one that goes on if they are one, and the model gets the others."""
    training, model.training_weights = model.training_weights, None
    averaged = start_average(model, decay)
    if training is not None:
        model.load_state_dict(training)
        go_on(averaged)
    return averaged


BAR_FORMAT = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"


def check_finite(step: int, loss: float, norm: float, sample_ids: torch.Tensor, after: str = "") -> None:
    """Raise FloatingPointError for a loss, or a norm of its gradient, that is not finite.

    The message tells step and sample ids, and ends with `after`.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        names = ", ".join(map(str, sample_ids.tolist()))
        raise FloatingPointError(
            f"step {step}: loss {loss:g}, norm of the gradient {norm:g}; sample ids {names}{after}"
        )


def all_finite(model: nn.Module) -> bool:
    """Whether every weight is finite; of a sharded model, every one that this process holds."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
    return bool(torch.stack([part.isfinite().all() for part in local]).all())


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


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


def _status(losses: list[float], tokens_per_step: int, elapsed: float) -> str:
    recent = losses[-50:]
    return (
        f"loss {sum(recent) / len(recent):.3f}, {len(losses) * tokens_per_step / elapsed / 1e3:.0f}k tokens/s"
    )
