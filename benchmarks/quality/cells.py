"""One training of one system on one task, and all that is measured of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.quality.presets import Preset
from benchmarks.quality.system import Drawn, Request, timed
from benchmarks.quality.systems import make_system
from benchmarks.quality.tasks import SHARES, Task
from benchmarks.quality.training import fit
from ggm.data.puzzles import is_solved
from ggm.training.config import TrainingConfig

BOUND_SEQUENCES = 128
SHOWN = 4
# With the log-linear schedule of absorbing noise, Euler and analytic steps are the same.
LEFT_OUT = {("sedd-absorbing", "euler")}


@dataclass(frozen=True)
class Cell:
    """What is trained: task, system, kind of budget ("seconds" or "steps"), seed."""

    task: str
    system: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.task}.{self.system}.{self.budget}.{self.seed}"


def cells_of(preset: Preset) -> list[Cell]:
    """All cells of a preset, task by task, so that a task is loaded once."""
    return [
        Cell(task, system, budget, seed)
        for task in preset.tasks
        for seed in range(preset.seeds)
        for budget in preset.budgets
        if budget == "seconds" or seed == 0
        for system in preset.systems
    ]


def run_cell(cell: Cell, task: Task, preset: Preset, device: torch.device) -> dict[str, Any]:
    """Train and measure; plain numbers, as they are written to JSON."""
    train, share = task.train.to(device), SHARES.get(cell.task, 1.0)
    config = TrainingConfig(
        seconds=share * preset.seconds if cell.budget == "seconds" else math.inf,
        steps=max(1, round(share * preset.steps)) if cell.budget == "steps" else None,
        batch_size=32,
        learning_rate=3e-3,
        weight_decay=0.05,
        ema_decay=0.99,
        seed=cell.seed,
    )
    torch.manual_seed(cell.seed)
    system = make_system(cell.system, task.shape).to(device)
    memory = kept_bytes(lambda: system.loss(train[:32], 0, 0, torch.arange(32, device=device)))
    fitted = fit(system, train, config)
    return {
        "cell": dataclasses.asdict(cell),
        "parameters": sum(p.numel() for p in system.parameters()),
        "training": {"steps": fitted.steps, "seconds": fitted.seconds, "loss": fitted.loss},
        "kept_MB": round(memory / 1e6, 1),
        "bound": bound_of(fitted.system, task, preset, device),
        "points": [
            point_of(fitted.system, task, preset, *at, device) for at in points(cell, fitted.system, preset)
        ],
    }


def kept_bytes(loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that a pass keeps for its gradient: what memory grows by with the batch, on any device."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()  # its graph keeps the tensors alive, so that no address is counted for another
    del result
    return sum(kept.values())


def bound_of(system: Any, task: Task, preset: Preset, device: torch.device) -> dict[str, float]:
    """Mean bound of held-out sequences in nats per token, and its standard error."""
    held_out = task.held_out[:BOUND_SEQUENCES].to(device)
    nats = system.bound(held_out, preset.bound_times, 0) / task.shape.length
    return {
        "nats_per_token": float(nats.mean()),
        "standard_error": float(nats.std()) / math.sqrt(len(nats)),
    }


def points(cell: Cell, system: Any, preset: Preset) -> Iterator[tuple[str, int, float]]:
    """Samplers, evaluations and temperatures to be measured, none of them twice."""
    wanted = [(evaluations, 1.0) for evaluations in preset.evaluations]
    wanted += [(preset.frontier, temperature) for temperature in (*preset.temperatures, 1.0)]
    for sampler in system.samplers:
        if (cell.system, sampler) in LEFT_OUT:
            continue
        near = [(system.steps_near(sampler, evaluations), temperature) for evaluations, temperature in wanted]
        for steps, temperature in dict.fromkeys(near):
            if steps is not None:
                yield sampler, steps, temperature


def point_of(
    system: Any,
    task: Task,
    preset: Preset,
    sampler: str,
    evaluations: int,
    temperature: float,
    device: torch.device,
) -> dict[str, Any]:
    """Samples of one setting, measured: and solved puzzles, where the task has them."""
    request = Request(preset.samples, sampler, evaluations, temperature, seed=1)
    drawn, seconds = timed(lambda: system.sample(request))
    tokens = drawn.tokens.cpu()
    measures = task.measure(tokens)
    if task.puzzles is not None:
        filled = _solve(system, task, request, device).tokens.cpu()
        measures["solved"] = float(is_solved(filled).double().mean())
    return {
        "sampler": sampler,
        "evaluations": evaluations,
        "evaluations_per_sample": drawn.evaluations,
        "temperature": temperature,
        "seconds": seconds,
        "measures": measures,
        "samples": [task.show(row) if task.show else row.tolist() for row in tokens[:SHOWN]],
    }


def _solve(system: Any, task: Task, request: Request, device: torch.device) -> Drawn:
    assert task.puzzles is not None
    tokens, given = (part[: request.count].to(device) for part in task.puzzles)
    return system.sample(dataclasses.replace(request, count=len(tokens), tokens=tokens, given=given))
