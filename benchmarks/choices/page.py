"""docs/choices.md from the file of results."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.choices.levers import BASE, LEVERS, names_of
from benchmarks.choices.problems import PROBLEMS

PAGE = Path(__file__).parents[2] / "docs" / "choices.md"
SEEDS = 3

_HEAD = """\
# Choices

Which prediction, network, loss, noise, chain and training learn most in a given time. Each row below changes
one thing of the base of its problem and is trained for as many seconds; the numbers are means over seeds, ±
their standard deviation.

- **bound**: the [likelihood bound](evaluation.md) on held-out data, nats per token, one site a step (masked
  networks: the smallest group that they have learnt): lower is better.
- **samples**: how far samples are from the data, as told under each title: lower is better.
- **steps**: optimiser steps that the time was enough for.

`python -m benchmarks.choices` makes all runs and this page; what it was stopped at, it goes on with. The base
is a hollow network that predicts the data by cross-entropy: `benchmarks/choices/problems.py` and `levers.py`
have every value.
"""


def render(results: dict[str, Any]) -> str:
    """The page."""
    parts = [_HEAD, _conditions(results), *_glance(results["runs"]), *_better(results["runs"])]
    if results.get("notes"):
        parts.append("## Which setting, then\n\n" + "".join(f"- {note}\n" for note in results["notes"]))
    for name, problem in PROBLEMS.items():
        tables = [_table(results["runs"], name, lever) for lever in LEVERS[name]]
        tables = [table for table in tables if table]
        if tables:
            judged = f"\nSamples: {problem.distance}.\n" if problem.samples else ""
            parts += [f"## {problem.title}\n{judged}", *tables]
    return "\n".join(parts)


def _glance(runs: dict[str, Any]) -> list[str]:
    """Of each problem the rows with the best bound and the best samples, beside the base."""
    lines = []
    for problem in PROBLEMS:
        found = {
            name if lever == BASE else f"{lever}: {name}": of_row
            for lever, name in names_of(problem)
            if (of_row := _runs(runs, problem, lever, name))
        }
        if BASE not in found or len(found) < 2:
            continue
        for measure, title in (("bound", "bound"), ("distance", "samples")):
            means = {name: _mean(of_row, measure) for name, of_row in found.items()}
            best = min(means, key=lambda name: means[name])
            if math.isfinite(means[best]):
                lines.append(
                    f"| {problem} | {title} | {best} | {means[best]:.3f} | {means[BASE]:.3f} | {len(found)} |"
                )
    if not lines:
        return []
    head = [
        "| problem | by | best row | its mean | the base's | rows |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return ["## At a glance\n", "\n".join([*head, *lines]) + "\n"]


def _better(runs: dict[str, Any]) -> list[str]:
    """Rows that beat the base by more than seeds explain, by either measure, with both."""
    lines = []
    for problem in PROBLEMS:
        base = _runs(runs, problem, BASE, BASE)
        for lever, name in names_of(problem)[1:]:
            found = _runs(runs, problem, lever, name)
            if min(len(found), len(base)) < 2:
                continue
            differences = [_difference(found, base, measure) for measure in ("bound", "distance")]
            if any(difference + 2 * error < 0 for difference, error in differences):
                cells = (_signed(*difference) for difference in differences)
                lines.append(f"| {problem} | {lever}: {name} | {' | '.join(cells)} |")
    if not lines:
        return []
    head = [
        "## What is better than the base\n",
        "Rows that are better by one of the measures, by more than two standard errors over seeds. Numbers",
        "are differences from the base, ± that error: what is below 0 is better.\n",
        "| problem | row | bound | samples |",
        "| --- | --- | ---: | ---: |",
    ]
    return ["\n".join([*head, *lines]) + "\n"]


def _difference(runs: list[dict[str, Any]], base: list[dict[str, Any]], measure: str) -> tuple[float, float]:
    """Difference of means from the base's and its standard error; NaN where the measure is not there."""
    values = [[run[measure] for run in group if run[measure] is not None] for group in (runs, base)]
    if min(map(len, values)) < 2:
        return math.nan, math.nan
    error = math.sqrt(sum(stdev(group) ** 2 / len(group) for group in values))
    return fmean(values[0]) - fmean(values[1]), error


def _signed(difference: float, error: float) -> str:
    return "–" if math.isnan(difference) else f"{difference:+.3f} ± {error:.3f}"


def _mean(runs: list[dict[str, Any]], measure: str) -> float:
    """Of a measure that there is; infinite, as the worst, where there is none."""
    values = [run[measure] for run in runs if run[measure] is not None]
    mean = fmean(values) if values else math.inf
    return math.inf if math.isnan(mean) else mean


def _conditions(results: dict[str, Any]) -> str:
    """Under what the numbers were measured, and how far that is from the whole."""
    runs = results["runs"]
    if not runs:
        return "Nothing has been measured yet.\n"
    machine, loads = results["machine"], [run["load"] for run in runs.values()]
    told = (
        f"Measured with {results['seconds']:g} s of processor time of one thread per run{_longer()}, on "
        f"{machine['cores']} cores of {machine['cpu']}; load of the machine after a run "
        f"{min(loads):g} to {max(loads):g}.\n"
    )
    seeds = Counter(key.rsplit(" / ", 1)[0] for key in runs)
    whole = {" / ".join((p, lever, row)) for p in LEVERS for lever in LEVERS[p] for row in LEVERS[p][lever]}
    missing = whole - set(seeds)
    fewest, most = min(seeds.values()), max(seeds.values())
    if missing or fewest < SEEDS:
        rows = f"{len(whole) - len(missing)} of {len(whole)} rows"
        each = f"{most}" if fewest == most else f"{fewest} to {most}"
        told += (
            f"\n**This is a reduced run**: {each} of {SEEDS} seeds, {rows}: "
            "differences within a seed's spread are noise.\n"
        )
    return told


def _longer() -> str:
    """Which problems take more than the seconds asked for."""
    told = [
        f"{p.times_seconds:g} times as many for {name}"
        for name, p in PROBLEMS.items()
        if p.times_seconds != 1
    ]
    return f" ({', '.join(told)})" if told else ""


def _table(runs: dict[str, Any], problem: str, lever: str) -> str:
    rows = [(name, _runs(runs, problem, lever, name)) for name in LEVERS[problem][lever]]
    rows = [("base", _runs(runs, problem, BASE, BASE)), *rows]
    rows = [(name, found) for name, found in rows if found]
    if len(rows) < 2:
        return ""
    best = min(fmean(run["bound"] for run in found) for _, found in rows)
    lines = [
        f"### {lever[0].upper()}{lever[1:]}\n",
        "| row | bound | samples | steps |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in rows:
        bound = _number([run["bound"] for run in found], 3)
        mark = "**" if fmean(run["bound"] for run in found) == best else ""
        distances = [run["distance"] for run in found if run["distance"] is not None]
        steps = round(fmean(run["steps"] for run in found))
        lines.append(f"| {name} | {mark}{bound}{mark} | {_number(distances, 2)} | {steps} |")
    return "\n".join(lines) + "\n"


def _runs(runs: dict[str, Any], problem: str, lever: str, name: str) -> list[dict[str, Any]]:
    start = " / ".join((problem, lever, name)) + " / "
    return [run for key, run in sorted(runs.items()) if key.startswith(start)]


def _number(values: list[float], digits: int) -> str:
    if not values or any(math.isnan(value) for value in values):
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"
