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
# Draws that no training has.
BOUND_SEED, SAMPLE_SEED = 1000, 1001
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


def batches_of(preset: Preset) -> TrainingConfig:
    """How every system trains, but for how long."""
    return TrainingConfig(
        seconds=math.inf,
        steps=1,
        batch_size=32,
        learning_rate=preset.learning_rate,
        weight_decay=0.05,
        ema_decay=0.99,
    )


def steps_of(cell: Cell, preset: Preset, pace: float) -> int:
    """Steps that a budget is enough for; `pace` is seconds per step of the system."""
    share = SHARES.get(cell.task, 1.0)
    steps = preset.steps if cell.budget == "steps" else preset.seconds / pace
    return max(1, round(share * steps))


def run_cell(cell: Cell, task: Task, preset: Preset, device: torch.device, pace: float) -> dict[str, Any]:
    """Train and measure; plain numbers, as they are written to JSON."""
    train = task.train.to(device)
    config = dataclasses.replace(batches_of(preset), steps=steps_of(cell, preset, pace), seed=cell.seed)
    torch.manual_seed(cell.seed)
    system = make_system(cell.system, task.shape).to(device)
    memory = kept_bytes(lambda: system.loss(train[:32], 0, 0, torch.arange(32, device=device)))
    fitted = fit(system, train, config)
    return {
        "cell": dataclasses.asdict(cell),
        "parameters": sum(p.numel() for p in system.parameters()),
        "training": {"steps": fitted.steps, "pace": pace, "seconds": fitted.seconds, "loss": fitted.loss},
        "kept_MB": round(memory / 1e6, 1),
        "bound": bound_of(fitted.system, task, preset, device),
        "points": [
            point_of(fitted.system, task, preset, *at, device)
            for at in points(cell.system, fitted.system, preset, task.is_text)
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
    nats = system.bound(held_out, preset.bound_times, BOUND_SEED) / task.shape.length
    return {
        "nats_per_token": float(nats.mean()),
        "standard_error": float(nats.std()) / math.sqrt(len(nats)),
    }


def points(name: str, system: Any, preset: Preset, frontier: bool) -> Iterator[tuple[str, int, float]]:
    """Samplers, evaluations and temperatures to be measured of a system of a name, none of them twice."""
    wanted = [(evaluations, 1.0) for evaluations in preset.evaluations]
    if frontier:
        wanted += [(preset.frontier, temperature) for temperature in (*preset.temperatures, 1.0)]
    for sampler in system.samplers:
        if (name, sampler) in LEFT_OUT:
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
    count = preset.samples * task.samples_factor
    request = Request(count, sampler, evaluations, temperature, seed=SAMPLE_SEED)
    drawn, seconds = timed(lambda: system.sample(request), device)
    tokens = drawn.tokens.cpu()
    measures = task.measure(tokens)
    if task.puzzles is not None:  # what is judged is their solving, and so what it costs
        given = dataclasses.replace(request, count=len(task.puzzles[0]))
        drawn, seconds = timed(lambda: _solve(system, task, given, device), device)
        count = given.count
        measures["solved"] = float(is_solved(drawn.tokens.cpu()).double().mean())
    return {
        "sampler": sampler,
        "evaluations": evaluations,
        "evaluations_per_sample": drawn.evaluations,
        "temperature": temperature,
        "seconds_per_sample": seconds / count,
        "measures": measures,
        "samples": [task.show(row) if task.show else row.tolist() for row in tokens[:SHOWN]],
    }


def _solve(system: Any, task: Task, request: Request, device: torch.device) -> Drawn:
    assert task.puzzles is not None
    tokens, given = (part.to(device) for part in task.puzzles)
    return system.sample(dataclasses.replace(request, tokens=tokens, given=given))
