"""Training loop of `ggm train` on one process: steps, looks at held-out data, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ggm.data.batches import Batch, batches
from ggm.data.sources import Data
from ggm.files import writing
from ggm.model import GGM
from ggm.progress import progress_bar
from ggm.training.checkpoints import Checkpoints, TrainingState
from ggm.training.config import RunConfig
from ggm.training.metrics import Metrics
from ggm.training.optimizer import share_done
from ggm.training.signals import Stop
from ggm.training.step import StepNumbers, Trainer, all_finite, check_finite

_EVALUATED = 64
# All that it tells fits into 80 columns.
_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {remaining} left{postfix}"


class Loop:
    """The steps of a run, on one of its processes."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Any,
        state: TrainingState,
        data: Data,
        checkpoints: Checkpoints,
        metrics: Metrics | None,
        sharded: bool,
    ) -> None:
        self.config, self.accelerator, self.state, self.data = config, accelerator, state, data
        self.checkpoints, self.metrics = checkpoints, metrics
        # Sequences of a pass.
        self.micro_batch = config.training.batch_size // (accelerator.num_processes * config.accumulation)
        self.sharded = sharded
        if sharded:
            loss: Any = state.model
            optimizer = accelerator.prepare_optimizer(state.optimizer, device_placement=False)
        else:
            loss, optimizer = accelerator.prepare(state.model, state.optimizer)
        self.trainer = Trainer(state, config.training, accelerator, loss, optimizer, self.micro_batch)
        # A look at the numbers makes the device wait: they are kept until a look is due.
        self.pending: list[StepNumbers] = []

    def train(self, received: list[int], max_steps: int | None, progress: bool) -> str | None:
        """Make steps until the budget is spent or a signal came; return its name."""
        config, state = self.config, self.state
        clock = _Clock(state, config.training.batch_size * config.model.chain.length)
        done = self._done()
        if self._over(max_steps):
            return None
        stop = Stop(received, self.accelerator.num_processes)
        with progress_bar(progress, 1.0, "training", initial=done, bar_format=_BAR_FORMAT) as bar:
            for batch in self._batches():
                self.pending.append(self.trainer.step(batch, done))
                clock.tick(state)
                bar.update(self._done() - done)
                done = self._done()
                over = self._over(max_steps)
                stopped = stop.agreed()
                saving = over or stopped is not None or state.step % config.checkpoint_every == 0
                if saving or state.step % config.log_every == 0:
                    status = self._look()
                    bar.set_postfix_str(f"{clock.rate(state) / 1e3:.0f}k tokens/s, {status}", refresh=False)
                if saving:
                    self._save()
                if over or stopped:
                    stop.close()
                    return stopped
        raise AssertionError("batches never end")

    def _over(self, max_steps: int | None) -> bool:
        return self._done() >= 1.0 or (max_steps is not None and self.state.step >= max_steps)

    def _done(self) -> float:
        return share_done(self.config.training, self.state.step, self.state.seconds)

    def _batches(self) -> Iterator[Batch]:
        return batches(
            self.data.train,
            self.config.training.batch_size,
            seed=self.config.training.seed,
            start=self.state.step,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _look(self) -> str:
        """Read the numbers of the steps since the last look; return a status line."""
        numbers = [torch.stack([step.loss.float(), step.gradient_norm.float()]) for step in self.pending]
        of_processes = self.accelerator.gather(torch.stack(numbers)[None]).cpu()
        self._check_finite(of_processes)
        lines = self._lines(of_processes.double().mean(dim=0))
        self.pending.clear()
        lines[-1] |= self._evaluate()
        return self._report(lines) if self.metrics is not None else ""

    def _check_finite(self, numbers: torch.Tensor) -> None:
        """Raise for the first step whose loss or gradient is not finite on some process."""
        bad = (~numbers.isfinite()).any(dim=2)
        if not bad.any():
            return
        first = int(bad.any(dim=0).nonzero()[0])
        ids = self.accelerator.gather(self.pending[first].sample_ids.to(self.accelerator.device)[None])
        rank = int(bad[:, first].nonzero()[0])
        loss, norm = numbers[rank, first].tolist()
        step = self.state.step - len(self.pending) + first + 1
        check_finite(step, loss, norm, ids[rank], f"; {self._last()}")

    def _last(self) -> str:
        return f"last checkpoint: {self.checkpoints.latest() or 'none'}"

    def _lines(self, numbers: torch.Tensor) -> list[dict[str, float]]:
        first = self.state.step - len(self.pending) + 1
        return [
            {"step": first + i, "loss": loss, "gradient_norm": norm, "learning_rate": step.learning_rate}
            for i, (step, (loss, norm)) in enumerate(zip(self.pending, numbers.tolist(), strict=True))
        ]

    def _report(self, lines: list[dict[str, float]]) -> str:
        """Write the numbers, and return those of a status line."""
        assert self.metrics is not None
        recent = {**lines[-1], "loss": sum(line["loss"] for line in lines) / len(lines)}
        try:
            self.metrics.write(lines)
            with writing(Path(self.config.out, self.config.tracker)):
                self.accelerator.log(recent, step=self.state.step)
        except OSError as error:
            raise OSError(f"{error}; {self._last()}") from error
        return (
            f"loss {recent['loss']:.3f}, calibration {recent['calibration']:.2f}, "
            f"held out {recent['held_out_loss']:.3f}"
        )

    def _evaluate(self) -> dict[str, float]:
        """Numbers of held-out data under the averaged weights, on all processes: each may hold a part."""
        model = self.state.averaged.module
        assert isinstance(model, GGM)
        tokens = self.data.held_out[:_EVALUATED].to(self.accelerator.device)
        with self.accelerator.autocast():
            return evaluate(model, tokens, self.micro_batch)

    def _check_weights(self) -> None:
        """Raise if weights or their average are not finite on some process: nobody could use them."""
        for name, model in (("weights", self.state.model), ("averaged weights", self.state.averaged)):
            finite = torch.tensor([all_finite(model)], dtype=torch.int32, device=self.accelerator.device)
            if not self.accelerator.gather(finite).all():
                raise FloatingPointError(
                    f"step {self.state.step}: got {name} that are not finite; {self._last()}"
                )

    def _save(self) -> None:
        self._check_weights()
        state: TrainingState | None = self.state
        if self.sharded:
            from ggm.training.sharding import gather

            state = gather(self.state, self.config.training)
        if self.metrics is not None:
            assert state is not None
            self.checkpoints.save(state, self.data.tokenizer, self.data.images)
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def evaluate(model: GGM, tokens: torch.Tensor, batch: int) -> dict[str, float]:
    """Loss and calibration on sequences [N, L], `batch` at a time: always with the same noise."""
    losses, sums = [], []
    for ids in torch.arange(len(tokens), device=tokens.device).split(batch):
        losses.append(len(ids) * model.loss(tokens[ids], seed=0, step=0, sample_ids=ids))
        sums.append(model.calibration(tokens[ids], seed=0, sample_ids=ids))
    return {
        "held_out_loss": float(torch.stack(losses).sum() / len(tokens)),
        "calibration": float(torch.cat(sums).mean()),
    }


class _Clock:
    """Training time over all parts of a run, and tokens per second in this one."""

    def __init__(self, state: TrainingState, tokens_per_step: int) -> None:
        self._started = time.perf_counter()
        self._earlier, self._first, self._tokens = state.seconds, state.step, tokens_per_step

    def tick(self, state: TrainingState) -> None:
        state.seconds = self._earlier + time.perf_counter() - self._started

    def rate(self, state: TrainingState) -> float:
        return (state.step - self._first) * self._tokens / (state.seconds - self._earlier)
