"""One training step: loss, gradient, clipping, AdamW, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from ggm.data.batches import Batch
from ggm.training.checkpoints import TrainingState
from ggm.training.config import TrainingConfig
from ggm.training.optimizer import set_learning_rate


class OneProcess:
    """What a step uses of `accelerate.Accelerator`, for one process in full precision."""

    sync_gradients = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def accumulate(self, *_: Any) -> AbstractContextManager[None]:
        """Nothing to be held back: the pass is the batch."""
        return nullcontext()

    autocast = accumulate

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Scale gradients down to a norm; returns the norm that they had."""
        return clip_grad_norm_(parameters, max_norm)


class StepNumbers(NamedTuple):
    """Numbers of a step that are still on the device, and what they are of.

    Attributes
    ----------
    loss : torch.Tensor
        Mean over all rows of the batch, with 0 for those of clean positions.
    gradient_norm : torch.Tensor
        Before clipping.
    counted : torch.Tensor
        Share of the other rows (`GGM.counted_share`). The loss per predicted token is ``loss / counted``,
        over several processes the quotient of the means.
    sample_ids : torch.Tensor
        Of the batch.
    learning_rate : float
        Of the step.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    counted: torch.Tensor
    sample_ids: torch.Tensor
    learning_rate: float


def _all_counted(_seed: int, _step: int, sample_ids: torch.Tensor) -> torch.Tensor:
    return torch.ones((), device=sample_ids.device)


@dataclass(frozen=True)
class Trainer:
    """Makes the steps of a training, in memory or of a run.

    Attributes
    ----------
    state : TrainingState
        Weights, average, moments and number of steps: what a step changes.
    config : TrainingConfig
        Peak of the learning rate, clipping, seed of the noise.
    accelerator : accelerate.Accelerator or OneProcess
        Sums up gradients of passes and processes, casts, and tells the device.
    loss, optimizer
        Those of the state, or what accelerate made of them.
    size : int
        Sequences of a pass.
    counted_share : callable
        That of a `GGM`; by default all rows count.
    """

    state: TrainingState
    config: TrainingConfig
    accelerator: Any
    loss: Callable[..., torch.Tensor]
    optimizer: Any
    size: int
    counted_share: Callable[[int, int, torch.Tensor], torch.Tensor] = _all_counted

    def step(
        self, batch: Batch, done: float, check: Callable[[StepNumbers], None] = lambda _: None
    ) -> StepNumbers:
        """Change the state by one step of the optimiser.

        Parameters
        ----------
        batch : Batch
            Sequences of this process.
        done : float
            Share of the budget that is spent, which the learning rate depends on.
        check : callable
            Looks at the numbers before weights are changed, and may raise; that makes the device wait.

        Returns
        -------
        StepNumbers
            Means over the batch.
        """
        state, config, accelerator = self.state, self.config, self.accelerator
        set_learning_rate(state.optimizer, config, done)
        rate = state.optimizer.param_groups[0]["lr"]
        losses, shares = [], []
        passes = zip(batch.sample_ids.split(self.size), batch.tokens.split(self.size), strict=True)
        for ids, tokens in passes:
            ids, tokens = ids.to(accelerator.device), tokens.to(accelerator.device)
            with accelerator.accumulate(self.loss):
                with accelerator.autocast():
                    loss = self.loss(tokens, config.seed, state.step, ids)
                accelerator.backward(loss)
                losses.append(loss.detach())
                shares.append(self.counted_share(config.seed, state.step, ids))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(state.model.parameters(), config.clip)
                    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model
                    loss, counted = torch.stack(losses).mean(), torch.stack(shares).mean()
                    numbers = StepNumbers(loss, norm, counted, batch.sample_ids, rate)
                    check(numbers)
                self.optimizer.step()
                self.optimizer.zero_grad()
        state.averaged.update_parameters(state.model)
        state.step += 1
        return numbers


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
