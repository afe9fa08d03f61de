"""Trains and measures all systems of a preset; what is done is not done again.

    python -m benchmarks.quality --preset small --out outputs/quality
    python -m benchmarks.quality.report outputs/quality -o docs/quality.md

On a CPU every process has one thread: `--shard 0/2` and `--shard 1/2`, in two shells, share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.quality.cells import Cell, cells_of, run_cell
from benchmarks.quality.presets import PRESETS, Preset
from benchmarks.quality.systems import ABLATIONS, SYSTEMS
from benchmarks.quality.tasks import MAKERS, SHARES, Evaluator, Task
from ggm.files import write_text
from ggm.progress import progress_bar

RUN = "run.json"


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(words)
    preset = chosen(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    run(preset, options.out, device, shard=options.shard, progress=not options.quiet)


def parser() -> argparse.ArgumentParser:
    """Flags; those of a preset's fields replace its values."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    made.add_argument("--preset", choices=PRESETS, default="small")
    made.add_argument("--out", type=Path, default=Path("outputs/quality"), help="folder of results")
    made.add_argument("--tasks", nargs="+", choices=MAKERS, metavar="TASK", help=", ".join(MAKERS))
    made.add_argument("--systems", nargs="+", choices=(*SYSTEMS, *ABLATIONS), metavar="SYSTEM")
    made.add_argument("--budgets", nargs="+", choices=("seconds", "steps"), metavar="BUDGET")
    for name in ("seconds", "evaluator-seconds"):
        made.add_argument(f"--{name}", type=float)
    for name in ("seeds", "steps", "samples", "frontier", "bound-times", "scale"):
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--evaluations", type=int, nargs="+", metavar="N")
    made.add_argument("--temperatures", type=float, nargs="+", metavar="T")
    made.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="every Nth cell from I")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def shard(word: str) -> tuple[int, int]:
    """Part of the cells, as "0/2"."""
    try:
        part, parts = map(int, word.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {word!r}; allowed: I/N, as 0/2") from None
    if not 0 <= part < parts:
        raise argparse.ArgumentTypeError(f"got {word!r}; allowed: I from 0 to N - 1")
    return part, parts


def chosen(options: argparse.Namespace) -> Preset:
    """Preset with what flags replace."""
    preset = PRESETS[options.preset]
    fields = {field.name for field in dataclasses.fields(preset)}
    given = {name: value for name, value in vars(options).items() if name in fields and value is not None}
    return dataclasses.replace(
        preset, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )


def run(
    preset: Preset,
    out: Path,
    device: torch.device,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> None:
    """Run the cells that have no file yet; each file appears when its cell is done.

    Raises
    ------
    ValueError
        If the folder holds results of another preset.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_same_run(out / RUN, preset)
    cells = cells_of(preset)[shard[0] :: shard[1]]
    left = [cell for cell in cells if not (out / f"{cell.name}.json").exists()]
    evaluator = Evaluator(preset.evaluator_seconds, out)
    if progress:
        print(f"{len(left)} of {len(cells)} cells to do, {estimate(left, preset):.0f} minutes of training")
    loaded: tuple[str, Task] | None = None
    with progress_bar(progress, len(cells), "cells", initial=len(cells) - len(left)) as bar:
        for cell in left:
            bar.set_postfix_str(cell.name)
            if loaded is None or loaded[0] != cell.task:
                loaded = (cell.task, MAKERS[cell.task](preset.scale, evaluator))
            result = run_cell(cell, loaded[1], preset, device)
            result |= {"machine": machine.describe(), "load": os.getloadavg()[0]}
            write_text(out / f"{cell.name}.json", json.dumps(result) + "\n")
            bar.update(1)
        for task in preset.tasks:
            file = out / f"{task}.data.json"
            if not file.exists():
                made = loaded[1] if loaded and loaded[0] == task else MAKERS[task](preset.scale, evaluator)
                write_text(file, json.dumps(of_data(task, made, preset)) + "\n")


def estimate(cells: Sequence[Cell], preset: Preset) -> float:
    """Minutes of training by time; sampling, training by steps and evaluators of texts come on top."""
    shares = (SHARES.get(cell.task, 1.0) for cell in cells if cell.budget == "seconds")
    return sum(shares) * preset.seconds / 60


def of_data(name: str, task: Task, preset: Preset) -> dict[str, Any]:
    """What is measured of held-out data in place of samples, and how many sequences there are."""
    held_out = task.held_out[: preset.samples]
    return {
        "task": name,
        "train": len(task.train),
        "length": task.shape.length,
        "vocab_size": task.shape.vocab_size,
        "sequences": len(held_out),
        "measures": task.measure(held_out),
        "samples": [task.show(row) if task.show else row.tolist() for row in held_out[:4]],
    }


def check_same_run(file: Path, preset: Preset) -> None:
    """Write what a folder is of, or refuse another preset's."""
    values = json.loads(json.dumps(dataclasses.asdict(preset)))
    if not file.exists():
        write_text(file, json.dumps(values, indent=1) + "\n")
        return
    before = json.loads(file.read_text())
    for key in values:
        # More tasks, systems or seeds of the same settings may be added.
        if key not in ("tasks", "systems", "seeds", "budgets") and before.get(key) != values[key]:
            raise ValueError(f"{key}: got {values[key]}; allowed: {before.get(key)}, as in {file}")


__all__ = ["Cell", "main", "run"]

if __name__ == "__main__":
    main()
