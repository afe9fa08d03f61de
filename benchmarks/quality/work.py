"""What the processes of a run do: the data of a task, the pace of its systems, one cell."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.quality.cells import Cell, batches_of, points, run_cell
from benchmarks.quality.presets import Preset
from benchmarks.quality.system import Request, timed
from benchmarks.quality.systems import make_system
from benchmarks.quality.tasks import MAKERS, Evaluator, Task
from benchmarks.quality.training import fit
from ggm.files import write_text

_ROUNDS, _STEPS = 5, 8


def cell_file(out: Path, cell: Cell) -> Path:
    """Where a cell's results are."""
    return out / f"{cell.name}.json"


def data_file(out: Path, task: str) -> Path:
    """Where a task's data and paces are."""
    return out / f"{task}.data.json"


@functools.cache
def task_of(name: str, preset: Preset, out: Path, device: str) -> Task:
    """A task, made once in each process."""
    return MAKERS[name](preset.scale, Evaluator(preset.evaluator_seconds, out, device))


def measure_data(name: str, preset: Preset, out: Path, device: str) -> None:
    """Write what is measured once of a task, unless it is there: held-out data, and what systems cost."""
    use_one_thread(device)
    # Made at any rate: cells that begin together must find the evaluator of texts.
    task = task_of(name, preset, out, device)
    file = data_file(out, name)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else of_data(name, task, preset)
    missing = [system for system in preset.systems if system not in known["paces"]]
    if missing or not file.exists():
        known["paces"] |= paces(missing, task, preset, torch.device(device))
        known["sampling"] |= {
            system: sampling(system, task, preset, torch.device(device)) for system in missing
        }
        write_text(file, json.dumps(known) + "\n")


def measure_cell(cell: Cell, preset: Preset, out: Path, device: str) -> None:
    """Train and measure one cell in a process of its own, and write its file."""
    use_one_thread(device)
    known = json.loads(data_file(out, cell.task).read_text(encoding="utf-8"))
    task = task_of(cell.task, preset, out, device)
    result = run_cell(cell, task, preset, torch.device(device), known["paces"][cell.system])
    result |= {"machine": machine.describe(), "load": os.getloadavg()[0]}
    write_text(cell_file(out, cell), json.dumps(result) + "\n")


def use_one_thread(device: str) -> None:
    """On a CPU, where processes share the cores."""
    if device == "cpu":
        torch.set_num_threads(1)


def of_data(name: str, task: Task, preset: Preset) -> dict[str, Any]:
    """What is measured of held-out data in place of samples, and how many sequences there are."""
    held_out = task.held_out[: preset.samples * task.samples_factor]
    return {
        "task": name,
        "train": len(task.train),
        "length": task.shape.length,
        "vocab_size": task.shape.vocab_size,
        "sequences": len(held_out),
        "measures": task.measure(held_out),
        "known": task.known,
        "samples": [task.show(row) if task.show else row.tolist() for row in held_out[:4]],
        "paces": {},
        "sampling": {},
    }


def paces(systems: list[str], task: Task, preset: Preset, device: torch.device) -> dict[str, float]:
    """Seconds of a training step of each system: the median of rounds, in which all take turns.

    A budget of seconds is trained as so many steps: what else the machine does then changes no result.
    """
    train = task.train.to(device)
    config = dataclasses.replace(batches_of(preset), seconds=float("inf"), steps=_STEPS)
    made = {name: make_system(name, task.shape).to(device) for name in systems}
    for system in made.values():
        fit(system, train, config)
    rounds = [
        {name: fit(system, train, config).seconds for name, system in made.items()} for _ in range(_ROUNDS)
    ]
    return {name: median(one[name] for one in rounds) / _STEPS for name in systems}


def sampling(system: str, task: Task, preset: Preset, device: torch.device) -> dict[str, float]:
    """What samples of one training cost: network evaluations of a batch, and their predicted seconds."""
    made = make_system(system, task.shape).to(device)
    batch = preset.samples * task.samples_factor
    wanted = list(points(system, made, preset, task.is_text))
    evaluations = sum(steps for _, steps, _ in wanted)
    if task.puzzles is not None:
        evaluations += round(evaluations * len(task.puzzles[0]) / batch)
    sampler, fewest, _ = min(wanted, key=lambda point: point[1])
    request = Request(batch, sampler, fewest)
    timed(lambda: made.sample(request), device)  # the first call prepares
    _, seconds = timed(lambda: made.sample(request), device)
    return {"evaluations": evaluations, "seconds": evaluations * seconds / fewest}


__all__ = ["cell_file", "data_file", "measure_cell", "measure_data"]
