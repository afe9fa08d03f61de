"""How long a run takes, predicted from what is measured once of its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.cells import Cell, steps_of
from benchmarks.quality.presets import Preset
from benchmarks.quality.tasks import SHARES
from benchmarks.quality.work import data_file


def training_minutes(cells: Sequence[Cell], preset: Preset) -> float:
    """Minutes of training by time, known before anything is measured."""
    shares = (SHARES.get(cell.task, 1.0) for cell in cells if cell.budget == "seconds")
    return sum(shares) * preset.seconds / 60


def estimate(cells: Sequence[Cell], preset: Preset, out: Path, workers: int) -> str:
    """A table of the minutes that cells will take; bounds, of seconds each, come on top."""
    lines, total = [f"{'task':12} {'cells':>5} {'training':>9} {'sampling':>9} {'evaluations':>12}"], 0.0
    for task in dict.fromkeys(cell.task for cell in cells):
        known = json.loads(data_file(out, task).read_text(encoding="utf-8"))
        mine, pace = [cell for cell in cells if cell.task == task], known["paces"]
        training = sum(steps_of(cell, preset, pace[cell.system]) * pace[cell.system] for cell in mine) / 60
        sampling = sum(known["sampling"][cell.system]["seconds"] for cell in mine) / 60
        evaluations = sum(known["sampling"][cell.system]["evaluations"] for cell in mine)
        lines.append(f"{task:12} {len(mine):5} {training:7.1f} m {sampling:7.1f} m {evaluations:12}")
        total += training + sampling
    lines.append(f"predicted: {total / workers:.0f} minutes, {workers} cells at a time")
    return "\n".join(lines)
