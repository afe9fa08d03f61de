"""Trains and measures all systems of a preset; what is done is not done again.

    python -m benchmarks.quality --preset small --out outputs/quality   # under 90 minutes on two cores
    python -m benchmarks.quality.report outputs/quality -o docs/quality.md

`--estimate` measures what a step and a sample of each system cost, tells how long the rest takes, and stops.
On a CPU as many trainings run at a time as there are cores, each on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.quality.cells import Cell, cells_of
from benchmarks.quality.estimate import estimate, training_minutes
from benchmarks.quality.presets import PRESETS, Preset
from benchmarks.quality.systems import ABLATIONS, SYSTEMS
from benchmarks.quality.tasks import MAKERS
from benchmarks.quality.work import cell_file, data_file, measure_cell, measure_data
from ggm.files import write_text
from ggm.progress import progress_bar

RUN = "run.json"


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(words)
    preset = chosen(options)
    on_gpu = torch.cuda.is_available()
    workers = options.workers or (1 if on_gpu else os.cpu_count() or 1)
    run(
        preset,
        options.out,
        "cuda" if on_gpu else "cpu",
        workers=workers,
        progress=not options.quiet,
        trains=not options.estimate,
    )
    if options.estimate:
        print(estimate(cells_left(preset, options.out), preset, options.out, workers))


def parser() -> argparse.ArgumentParser:
    """Flags; those of a preset's fields replace its values."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    made.add_argument("--preset", choices=PRESETS, default="small")
    made.add_argument("--out", type=Path, default=Path("outputs/quality"), help="folder of results")
    made.add_argument("--tasks", nargs="+", choices=MAKERS, metavar="TASK", help=", ".join(MAKERS))
    made.add_argument("--systems", nargs="+", choices=(*SYSTEMS, *ABLATIONS), metavar="SYSTEM")
    made.add_argument("--budgets", nargs="+", choices=("seconds", "steps"), metavar="BUDGET")
    for name in ("seconds", "evaluator-seconds", "learning-rate"):
        made.add_argument(f"--{name}", type=float)
    for name in ("seeds", "steps", "samples", "frontier", "bound-times", "scale"):
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--evaluations", type=int, nargs="+", metavar="N")
    made.add_argument("--temperatures", type=float, nargs="+", metavar="T")
    made.add_argument("--workers", type=int, help="trainings at a time (default: cores; on a GPU 1)")
    made.add_argument("--estimate", action="store_true", help="tell how long the rest will take, and stop")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def chosen(options: argparse.Namespace) -> Preset:
    """Preset with what flags replace."""
    preset = PRESETS[options.preset]
    fields = {field.name for field in dataclasses.fields(preset)}
    given = {name: value for name, value in vars(options).items() if name in fields and value is not None}
    return dataclasses.replace(
        preset, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    )


def cells_left(preset: Preset, out: Path) -> list[Cell]:
    """Cells that have no file yet."""
    return [cell for cell in cells_of(preset) if not cell_file(out, cell).exists()]


def run(
    preset: Preset,
    out: Path,
    device: str,
    *,
    workers: int = 1,
    progress: bool = False,
    trains: bool = True,
) -> None:
    """Measure what is measured once of a task, then run the cells that have no file yet.

    Each file appears when its cell is done. Without `trains` it is what is measured once alone.

    Raises
    ------
    ValueError
        If the folder holds results of another preset, or of another processor.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_same_run(out / RUN, preset)
    total = len(cells_of(preset))
    left = cells_left(preset, out)
    if progress and trains:
        minutes = training_minutes(left, preset) / workers
        print(f"{len(left)} of {total} cells to do, {minutes:.0f} minutes of training")
    spawn = multiprocessing.get_context("spawn")
    with (
        progress_bar(progress and trains, total, "cells", initial=total - len(left)) as bar,
        ProcessPoolExecutor(workers, mp_context=spawn) as pool,
    ):
        # Cells wait for what is measured once of their task, and for no other task.
        cells = {task: [cell for cell in left if cell.task == task] for task in preset.tasks}
        running: dict[Future[None], list[Cell]] = {
            pool.submit(measure_data, task, preset, out, device): mine if trains else []
            for task, mine in cells.items()
            if mine or not data_file(out, task).exists()
        }
        tasks = set(running)
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    following = running.pop(future)
                    future.result()
                    bar.update(0 if future in tasks else 1)
                    running |= {
                        pool.submit(measure_cell, cell, preset, out, device): [] for cell in following
                    }
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def check_same_run(file: Path, preset: Preset) -> None:
    """Write what a folder is of, or refuse another preset's or another machine's."""
    found = machine.describe()
    values = json.loads(json.dumps({**dataclasses.asdict(preset), "processor": found["gpu"] or found["cpu"]}))
    if not file.exists():
        write_text(file, json.dumps(values, indent=1) + "\n")
        return
    before = json.loads(file.read_text())
    for key in values:
        # More tasks, systems or seeds of the same settings may be added; seconds elsewhere are others.
        if key not in ("tasks", "systems", "seeds", "budgets") and before.get(key) != values[key]:
            raise ValueError(f"{key}: got {values[key]}; allowed: {before.get(key)}, as in {file}")


if __name__ == "__main__":
    main()
