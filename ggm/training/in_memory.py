"""Training on sequences that fit into memory, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ggm.data.batches import Batch, index_batches
from ggm.model import GGM
from ggm.progress import progress_bar
from ggm.training.checkpoints import TrainingState
from ggm.training.config import TrainingConfig
from ggm.training.optimizer import averaged_model, make_optimizer, share_done
from ggm.training.step import OneProcess, StepNumbers, Trainer, all_finite, check_finite

_BAR_FORMAT = "{l_bar}{bar}| {elapsed} gone, {remaining} left{postfix}"


@dataclass(frozen=True)
class TrainingResult:
    """What a run gives: averaged model, steps made, seconds, mean loss per token of the last tenth."""

    model: GGM
    steps: int
    seconds: float
    loss: float


def train(
    model: GGM,
    data: torch.Tensor,
    config: TrainingConfig,
    *,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
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
    clock : callable
        Seconds, as `config.seconds` counts them: `time.process_time` trains the same on a busy machine.

    Returns
    -------
    TrainingResult
        The averaged weights are in its model, with the last ones beside them to be saved with it; the last
        ones are in `model`, too.

    Raises
    ------
    TypeError, ValueError
        If the model is a wrapper of one, as `torch.compile` makes it, or there are no data.
    FloatingPointError
        If the loss, its gradient, or at the end a weight is not finite: tells the step. `model` is as
        the step before left it.
    """
    _check(model, data)
    state = TrainingState(model, averaged_model(model, config.ema_decay), make_optimizer(model, config))
    state.optimizer.zero_grad()  # of an earlier backward pass
    batch_size = min(config.batch_size, len(data))
    batches = index_batches(len(data), batch_size, seed=config.seed)
    one, counted_share = OneProcess(data.device), model.counted_share
    trainer = Trainer(state, config, one, model.loss, state.optimizer, batch_size, counted_share)
    losses: list[float] = []

    def check(numbers: StepNumbers) -> None:
        losses.append(float(numbers.loss / numbers.counted))
        check_finite(len(losses), losses[-1], float(numbers.gradient_norm), numbers.sample_ids)

    started = clock()
    done = 0.0
    with progress_bar(progress, 1.0, "training", bar_format=_BAR_FORMAT) as bar:
        while done < 1.0:
            ids = next(batches).to(data.device)
            trainer.step(Batch(ids, data[ids]), done, check)
            state.seconds = clock() - started
            share = share_done(config, state.step, state.seconds)
            bar.set_postfix_str(_status(losses, batch_size * data.shape[1], state.seconds), refresh=False)
            bar.update(share - done)
            done = share
            if state.step == 1:
                bar.refresh()
    recent = losses[-max(1, len(losses) // 10) :]
    result = state.average
    if not all_finite(result):
        raise FloatingPointError(f"step {state.step}: got averaged weights that are not finite")
    result.training_weights = {name: value.clone() for name, value in model.state_dict().items()}
    return TrainingResult(result, state.step, state.seconds, sum(recent) / len(recent))


def _check(model: GGM, data: torch.Tensor) -> None:
    """Raise for a wrapper, whose forward no step would call, and for no data."""
    if not isinstance(model, GGM):
        raise TypeError(
            f"model: got {type(model).__name__}; allowed: a GGM itself, without torch.compile or another "
            "wrapper around it: it is trained uncompiled, and may be compiled afterwards"
        )
    if len(data) == 0:
        raise ValueError(f"data: got shape {tuple(data.shape)}; allowed: at least one sequence")


def _status(losses: list[float], tokens_per_step: int, elapsed: float) -> str:
    recent = losses[-50:]
    return (
        f"loss {sum(recent) / len(recent):.3f}, {len(losses) * tokens_per_step / elapsed / 1e3:.0f}k tokens/s"
    )
