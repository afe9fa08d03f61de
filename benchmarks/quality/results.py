"""Results of a run, merged from its cells into one file and averaged over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.quality.systems import SYSTEMS

RUN = "run.json"


@dataclass(frozen=True)
class Headline:
    """The measure that a task is judged by: its name, a title, and whether more is better."""

    measure: str
    title: str
    more: bool = False

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.more else min(values)


HEADLINES = {
    "digits": Headline("frechet", "Frechet distance of pixels to the training set"),
    "digits-noisy": Headline("frechet", "Frechet distance of pixels to the training set without damage"),
    "pydoc-char": Headline("perplexity", "perplexity under the evaluator"),
    "pydoc-bpe": Headline("perplexity", "perplexity under the evaluator"),
    "sudoku-4": Headline("solved", "share of puzzles solved from givens", more=True),
    "sudoku-9": Headline("solved", "share of puzzles solved from givens", more=True),
    "potts": Headline("total_variation", "total variation from the law"),
}


@dataclass(frozen=True)
class Point:
    """One setting of a system, averaged over seeds.

    Attributes
    ----------
    evaluations, per_sample : int, float
        Network evaluations asked for, and those that a sample took part in.
    seconds : float or None
        What a sample costs, where that was measured.
    measures : dict
        Means by name.
    spread : dict
        Half of the range over seeds by name; 0 for one seed.
    """

    system: str
    sampler: str
    evaluations: int
    per_sample: float
    temperature: float
    seconds: float | None
    measures: dict[str, float]
    spread: dict[str, float]


@dataclass(frozen=True)
class Results:
    """Cells, held-out data by task, the preset that they were made with, and what was seen in them."""

    preset: dict[str, Any]
    cells: list[dict[str, Any]]
    data: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()

    def tasks(self) -> list[str]:
        """Tasks that have cells, in the order of the preset's headlines."""
        seen = {cell["cell"]["task"] for cell in self.cells}
        return [task for task in HEADLINES if task in seen]

    def of(self, task: str, budget: str) -> dict[str, list[dict[str, Any]]]:
        """Cells of a task by system, a list over seeds."""
        found: dict[str, list[dict[str, Any]]] = {}
        for cell in self.cells:
            if (cell["cell"]["task"], cell["cell"]["budget"]) == (task, budget):
                found.setdefault(cell["cell"]["system"], []).append(cell)
        return dict(sorted(found.items(), key=lambda item: rank(item[0])))

    def points(self, task: str, budget: str) -> list[Point]:
        """Settings of all systems of a task."""
        return [point for cells in self.of(task, budget).values() for point in _averaged(cells)]


def rank(system: str) -> int:
    """Place of a system in pages and pictures."""
    return SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS)


def _averaged(cells: list[dict[str, Any]]) -> list[Point]:
    groups: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for cell in cells:
        for point in cell["points"]:
            key = (point["sampler"], point["evaluations"], point["temperature"])
            groups.setdefault(key, []).append(point)
    made = []
    for (sampler, evaluations, temperature), group in groups.items():
        names = group[0]["measures"]
        values = {name: [point["measures"][name] for point in group] for name in names}
        made.append(
            Point(
                cells[0]["cell"]["system"],
                sampler,
                evaluations,
                fmean(point["evaluations_per_sample"] for point in group),
                temperature,
                fmean(costs) if (costs := _costs(group)) else None,
                {name: fmean(v) for name, v in values.items()},
                {name: 0.5 * (max(v) - min(v)) for name, v in values.items()},
            )
        )
    return made


def _costs(points: list[dict[str, Any]]) -> list[float]:
    return [point["seconds_per_sample"] for point in points if "seconds_per_sample" in point]


def read(path: Path) -> Results:
    """Results of a folder of cells, or of a merged file."""
    values = merged(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
    return Results(values["preset"], values["cells"], values["data"], tuple(values.get("notes", ())))


def merged(folder: Path) -> dict[str, Any]:
    """All files of a run as one object."""
    # One whose name begins with a dot was being written when a process ended.
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    values = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    preset = values.pop(RUN)
    data = {value["task"]: value for name, value in values.items() if name.endswith(".data.json")}
    return {"preset": preset, "data": data, "cells": [value for value in values.values() if "cell" in value]}


def write(folder: Path, file: Path, notes: Sequence[str] = ()) -> None:
    """Write the merged file of a folder, a line per cell."""
    values = merged(folder)
    parts = [f'"preset": {json.dumps(values["preset"])}', f'"data": {json.dumps(values["data"])}']
    cells = ",\n".join(json.dumps(cell) for cell in values["cells"])
    parts.append(f'"notes": {json.dumps(list(notes))}')
    parts.append(f'"cells": [\n{cells}\n]')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
