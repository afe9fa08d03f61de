"""Results of a run, merged from its cells into one file and averaged over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.quality.systems import SYSTEMS

RUN = "run.json"
DULL = 0.3  # nats of entropy below held-out text, from where on perplexity says nothing


@dataclass(frozen=True)
class Headline:
    """The measure that a task is judged by: its name, a title, and whether more is better."""

    measure: str
    title: str
    more: bool = False

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.more else min(values)

    def best_point(self, points: Sequence[Point]) -> Point | None:
        """The best of some points; of several as good the one with the fewest evaluations."""
        if not points:
            return None
        wanted = self.best(point.measures[self.measure] for point in points)
        equal = [point for point in points if point.measures[self.measure] == wanted]
        return min(equal, key=lambda point: point.evaluations)


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
    seconds : float
        What a sample costs.
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
    seconds: float
    measures: dict[str, float]
    spread: dict[str, float]


@dataclass(frozen=True)
class Results:
    """Cells, held-out data by task, the preset that they were made with, what was seen, runs beside it."""

    preset: dict[str, Any]
    cells: list[dict[str, Any]]
    data: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    others: tuple[Results, ...] = ()

    def tasks(self) -> list[str]:
        """Tasks that have cells, in the order of the preset's headlines."""
        seen = {cell["cell"]["task"] for cell in self.cells}
        return [task for task in HEADLINES if task in seen]

    def systems(self) -> set[str]:
        """Systems that have cells."""
        return {cell["cell"]["system"] for cell in self.cells}

    def seeds(self) -> int:
        """How many seeds its cells have."""
        return len({cell["cell"]["seed"] for cell in self.cells})

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

    def judged(self, task: str, budget: str) -> list[Point]:
        """Settings by which systems are told apart: at temperature 1, and texts that are not dull."""
        least = self.data[task]["measures"].get("entropy", -math.inf) - DULL
        return [
            point
            for point in self.points(task, budget)
            if point.temperature == 1.0 and point.measures.get("entropy", math.inf) >= least
        ]


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
                fmean(point["seconds_per_sample"] for point in group),
                {name: fmean(v) for name, v in values.items()},
                {name: 0.5 * (max(v) - min(v)) for name, v in values.items()},
            )
        )
    return made


def read(path: Path, *others: Path) -> Results:
    """Results of a folder of cells or of a kept file, and of runs beside it."""
    values = merged(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
    beside = [_results(kept) for kept in values.get("others", ())]
    return dataclasses.replace(_results(values), others=(*beside, *map(read, others)))


def _results(values: dict[str, Any]) -> Results:
    return Results(values["preset"], values["cells"], values["data"], tuple(values.get("notes", ())))


def merged(folder: Path) -> dict[str, Any]:
    """All files of a run as one object."""
    # One whose name begins with a dot was being written when a process ended.
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    values = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    preset = values.pop(RUN)
    data = {value["task"]: value for name, value in values.items() if name.endswith(".data.json")}
    return {"preset": preset, "data": data, "cells": [value for value in values.values() if "cell" in value]}


def write(folder: Path, file: Path, notes: Sequence[str] = (), others: Sequence[Path] = ()) -> None:
    """Write one file of a run and of those beside it, a line per cell."""
    values = merged(folder)
    parts = _parts(values)
    parts.append(f'"notes": {json.dumps(list(notes))}')
    if others:
        beside = ",\n".join("{" + ",\n".join(_parts(_without_samples(merged(path)))) + "}" for path in others)
        parts.append(f'"others": [\n{beside}\n]')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _parts(values: dict[str, Any]) -> list[str]:
    cells = ",\n".join(json.dumps(cell) for cell in values["cells"])
    return [
        f'"preset": {json.dumps(values["preset"])}',
        f'"data": {json.dumps(values["data"])}',
        f'"cells": [\n{cells}\n]',
    ]


def _without_samples(values: dict[str, Any]) -> dict[str, Any]:
    """A run beside the first, of which the page shows no samples."""
    for cell in values["cells"]:
        cell["points"] = [{**point, "samples": []} for point in cell["points"]]
    return values
