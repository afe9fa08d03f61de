"""Training loop of `ggm train` on one process: steps, looks at held-out data, checkpoints, samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ggm.data.batches import Batch, batches
from ggm.data.sources import Data
from ggm.data.vocabulary import Vocabulary
from ggm.files import writing
from ggm.model import GGM
from ggm.model_card import Training
from ggm.progress import progress_bar
from ggm.training.checkpoints import Checkpoints, TrainingState
from ggm.training.config import RunConfig
from ggm.training.metrics import Metrics
from ggm.training.optimizer import share_done
from ggm.training.previews import Preview, draw
from ggm.training.signals import Stop
from ggm.training.step import StepNumbers, Trainer, all_finite, check_finite

_EVALUATED = 64
# Seconds until a bar tells the loss again, however far the next look is.
_TOLD_EVERY = 5.0
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
        share = state.model.counted_share
        self.trainer = Trainer(state, config.training, accelerator, loss, optimizer, self.micro_batch, share)
        # A look at the numbers makes the device wait: they are kept until a look is due.
        self.pending: list[StepNumbers] = []
        # Of the last look.
        self.held_out: dict[str, float] = {}
        self.preview: Preview | None = None
        self.clock = _Clock(state, config.training.batch_size * config.model.chain.length)

    def train(self, received: list[int], max_steps: int | None, progress: bool) -> str | None:
        """Make steps until the budget is spent or a signal came; return its name."""
        config, state = self.config, self.state
        done, first = self._done(), state.step + 1
        self.clock.start()
        if self._over(max_steps):
            return None
        stop = Stop(received, self.accelerator.num_processes)
        with progress_bar(progress, 1.0, "training", initial=done, bar_format=_BAR_FORMAT) as bar:
            for batch in self._batches():
                self.pending.append(self.trainer.step(batch, done))
                self.clock.tick(state)
                bar.update(self._done() - done)
                done = self._done()
                over = self._over(max_steps)
                stopped = stop.agreed()
                saving = over or stopped is not None or state.step % config.checkpoint_every == 0
                if saving or state.step % config.log_every == 0 or state.step == first:
                    bar.set_postfix_str(self._look(saving), refresh=False)
                    if state.step == first:
                        bar.refresh()
                elif progress and self.clock.since_told() >= _TOLD_EVERY:
                    bar.set_postfix_str(
                        self._status(self._mean_loss(), self.clock.rate(state)), refresh=False
                    )
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

    def _look(self, saving: bool) -> str:
        """Read the numbers of the steps since the last look, sample if `saving`; return a status line."""
        steps = [(step.loss, step.gradient_norm, step.counted) for step in self.pending]
        numbers = [torch.stack([value.float() for value in values]) for values in steps]
        of_processes = self.accelerator.gather(torch.stack(numbers)[None]).cpu()
        self._check_finite(of_processes)
        lines = self._lines(of_processes.double().mean(dim=0))
        rate = self.clock.rate(self.state)
        self.pending.clear()
        self.held_out = self._evaluate()
        lines[-1] |= {"seconds": self.state.seconds, "tokens_per_second": rate, **self.held_out}
        # Nobody else needs samples, but who holds a part of the model has to help.
        drawing = saving and (self.sharded or self.metrics is not None)
        self.preview = draw(self.state.average, self.data, self.config.samples) if drawing else None
        status = self._report(lines) if self.metrics is not None else ""
        self.clock.rest(self.state)
        return status

    def _mean_loss(self) -> float:
        """Mean loss of this process since the last look: nobody else is asked."""
        return float(torch.stack([step.loss.float() / step.counted for step in self.pending]).mean())

    def _status(self, loss: float, rate: float) -> str:
        self.clock.tell()
        told = [f"{rate / 1e3:.0f}k tokens/s", f"loss {loss:.3f}"]
        if "calibration" in self.held_out:
            told.append(f"calibration {self.held_out['calibration']:.2f}")
        return ", ".join([*told, f"held out {self.held_out['held_out_loss']:.3f}"])

    def _check_finite(self, numbers: torch.Tensor) -> None:
        """Raise for the first step whose loss or gradient is not finite on some process."""
        bad = (~numbers.isfinite()).any(dim=2)
        if not bad.any():
            return
        first = int(bad.any(dim=0).nonzero()[0])
        ids = self.accelerator.gather(self.pending[first].sample_ids.to(self.accelerator.device)[None])
        rank = int(bad[:, first].nonzero()[0])
        loss, norm, counted = numbers[rank, first].tolist()
        step = self.state.step - len(self.pending) + first + 1
        check_finite(step, loss / counted, norm, ids[rank], f"; {self._last()}")

    def _last(self) -> str:
        return f"last checkpoint: {self.checkpoints.latest() or 'none'}"

    def _lines(self, numbers: torch.Tensor) -> list[dict[str, Any]]:
        first = self.state.step - len(self.pending) + 1
        return [
            {
                "step": first + i,
                "loss": loss / counted,
                "gradient_norm": norm,
                "learning_rate": step.learning_rate,
            }
            for i, (step, (loss, norm, counted)) in enumerate(
                zip(self.pending, numbers.tolist(), strict=True)
            )
        ]

    def _report(self, lines: list[dict[str, Any]]) -> str:
        """Write the numbers and samples; return a status line."""
        assert self.metrics is not None
        out, step, preview = Path(self.config.out), self.state.step, self.preview
        recent = {**lines[-1], "loss": sum(line["loss"] for line in lines) / len(lines)}
        try:
            if preview is not None:
                lines[-1] |= preview.write(out, step)
            self.metrics.write(lines)
            with writing(out / self.config.tracker):
                self.accelerator.log(recent, step=step)
                if preview is not None:
                    preview.track(self.accelerator, step)
        except OSError as error:
            raise OSError(f"{error}; {self._last()}") from error
        return self._status(recent["loss"], recent["tokens_per_second"])

    def _evaluate(self) -> dict[str, float]:
        """Numbers of held-out data under the averaged weights, on all processes: each may hold a part."""
        model = self.state.average
        tokens = self.data.held_out[:_EVALUATED].to(self.accelerator.device)
        with self.accelerator.autocast():
            return evaluate(model, tokens, self.micro_batch)

    def _training(self) -> Training:
        """What the card of a checkpoint tells of the run."""
        samples = () if self.preview is None else self.preview.lines
        numbers = {"steps": self.state.step, "seconds": self.state.seconds, **self.held_out}
        picture = self.preview is not None and self.preview.picture is not None
        return Training(dataclasses.asdict(self.config.data), numbers, samples, picture)

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
            held_out_loss = self.held_out["held_out_loss"]
            self.checkpoints.save(
                state,
                Vocabulary(self.data.tokenizer, self.data.images),
                held_out_loss,
                self._training(),
                None if self.preview is None else self.preview.picture,
            )
            self.clock.rest(self.state)
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def evaluate(model: GGM, tokens: torch.Tensor, batch: int) -> dict[str, float]:
    """Loss per predicted token, and calibration if it is learnt, of sequences [N, L], with the same noise.

    They are looked at `batch` at a time.
    """
    losses, counted, sums = [], [], []
    for ids in torch.arange(len(tokens), device=tokens.device).split(batch):
        losses.append(len(ids) * model.loss(tokens[ids], seed=0, step=0, sample_ids=ids))
        counted.append(len(ids) * model.counted_share(seed=0, step=0, sample_ids=ids))
        if model.config.objective.determines_calibration:
            sums.append(model.calibration(tokens[ids], seed=0, sample_ids=ids))
    found = {"held_out_loss": float(torch.stack(losses).sum() / torch.stack(counted).sum())}
    return {**found, "calibration": float(torch.cat(sums).mean())} if sums else found


class _Clock:
    """Training time over all parts of a run, and tokens per second of the steps since the last look."""

    def __init__(self, state: TrainingState, tokens_per_step: int) -> None:
        self._earlier, self._step, self._tokens = state.seconds, state.step, tokens_per_step
        self.start()

    def start(self) -> None:
        self._started = self._rested = self._told = time.perf_counter()

    def tick(self, state: TrainingState) -> None:
        state.seconds = self._earlier + time.perf_counter() - self._started

    def rest(self, state: TrainingState) -> None:
        """A look or a checkpoint is over: what it took is not that of steps."""
        self._rested, self._step = time.perf_counter(), state.step

    def rate(self, state: TrainingState) -> float:
        return (state.step - self._step) * self._tokens / (time.perf_counter() - self._rested)

    def tell(self) -> None:
        self._told = time.perf_counter()

    def since_told(self) -> float:
        return time.perf_counter() - self._told
