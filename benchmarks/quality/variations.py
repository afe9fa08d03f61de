"""Sections of the page from runs beside the first: GGM with one thing changed, and other learning rates."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from benchmarks.quality.results import HEADLINES, Results
from benchmarks.quality.systems import ABLATIONS
from benchmarks.words import three_digits


def ablations(found: Results) -> str:
    """What one change of `ggm-hollow` does at equal steps; nothing if no run is of that."""
    runs = [run for run in found.others if run.systems() <= set(ABLATIONS)]
    if not runs:
        return ""
    run = runs[0]
    columns = {task: _cells(run, task, "steps") for task in run.tasks()}
    lines = [
        "| `ggm-hollow` with | "
        + " | ".join(f"{task}: bound | {HEADLINES[task].measure}" for task in columns),
        "| --- |" + " ---: | ---: |" * len(columns),
    ]
    lines[0] += " |"
    lines += [
        f"| {'nothing changed' if name == 'ggm-hollow' else name} | "
        + " | ".join(cells.get(name, " | ") for cells in columns.values())
        + " |"
        for name in ABLATIONS
    ]
    seeds = run.seeds()
    return (
        "## Ablations\n\n"
        f"Equal steps ({_steps(run)}), {seeds} seed{'s' if seeds > 1 else ''}; beside the bound, the best "
        "of the samplers at temperature 1. `digits-noisy` learns from digits of which a twentieth of the "
        "pixels is black or white instead, and is judged by digits without. [The choices](choices.md) have "
        "more of them, at equal time and over three seeds.\n\n" + "\n".join(lines) + "\n\n"
    )


def learning_rates(found: Results) -> str:
    """Bound and headline of every system by learning rate; nothing if all runs have the same."""
    others = [run for run in found.others if run.preset["learning_rate"] != found.preset["learning_rate"]]
    if not others:
        return ""
    runs = sorted([found, *others], key=lambda run: run.preset["learning_rate"])
    rates = [f"{run.preset['learning_rate']:g}" for run in runs]
    parts = [
        "## Learning rates\n\n"
        f"All systems above learn with {found.preset['learning_rate']:g}. Would another have been kinder to "
        "some? Of each system the bound and the best of its samplers at temperature 1, by learning rate; "
        "one seed where the rate is another.\n\n"
    ]
    for task in found.tasks():
        by_rate = {rate: _values(run, task) for rate, run in zip(rates, runs, strict=True)}
        having = {rate: values for rate, values in by_rate.items() if values}
        if len(having) > 1:
            parts.append(_rate_table(task, having))
    return "".join(parts)


def _rate_table(task: str, having: dict[str, dict[str, tuple[float, float]]]) -> str:
    headline = HEADLINES[task]
    rates = list(having)
    lines = [
        "| system | "
        + " | ".join(f"{name}, {rate}" for name in ("bound", headline.measure) for rate in rates)
        + " |",
        "| --- |" + " ---: |" * (2 * len(rates)),
    ]
    picks: tuple[Callable[..., float], ...] = (min, max if headline.more else min)
    for system in having[rates[0]]:
        if not all(system in values for values in having.values()):
            continue
        row = []
        for which, pick in enumerate(picks):
            values = [having[rate][system][which] for rate in rates]
            words = [f"{value:.3f}" if which == 0 else three_digits(value) for value in values]
            row += [
                f"**{word}**" if value == pick(values) else word
                for word, value in zip(words, values, strict=True)
            ]
        lines.append(f"| {system} | " + " | ".join(row) + " |")
    return f"{task}:\n\n" + "\n".join(lines) + "\n\n"


def _cells(run: Results, task: str, budget: str) -> dict[str, str]:
    values = _values(run, task, budget)
    return {system: f"{bound:.3f} | {three_digits(value)}" for system, (bound, value) in values.items()}


def _values(run: Results, task: str, budget: str = "seconds") -> dict[str, tuple[float, float]]:
    """Bound and best headline by system."""
    headline = HEADLINES[task]
    made = {}
    for system, cells in run.of(task, budget).items():
        points = [point for point in run.judged(task, budget) if point.system == system]
        if points:
            bound = fmean(cell["bound"]["nats_per_token"] for cell in cells)
            made[system] = bound, headline.best(point.measures[headline.measure] for point in points)
    return made


def _steps(run: Results) -> str:
    """Steps of each task."""
    found = {task: next(iter(run.of(task, "steps").values()))[0] for task in run.tasks()}
    return ", ".join(f"{task} {cell['training']['steps']}" for task, cell in found.items())
