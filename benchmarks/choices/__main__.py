"""Train each lever of a model against one base at equal seconds, and write the page of it.

    python -m benchmarks.choices                    # all of it: under 90 minutes on two cores
    python -m benchmarks.choices --problems digits --seeds 1 --seconds 5
    python -m benchmarks.choices --page-only

Runs that the file of results holds already, of the same setup and seconds, are not made again: stop it at
any time. Seconds are processor time: a busy machine takes longer and trains the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.choices import page
from benchmarks.choices.levers import Row, rows
from benchmarks.choices.measure import described, measure
from benchmarks.choices.problems import PROBLEMS
from benchmarks.machine import describe
from ggm.files import write_text

RESULTS = Path(__file__).parent / "results.json"


def main(words: list[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    options = _parser().parse_args(words)
    results = read(options.results)
    if options.notes is not None:
        results["notes"] = options.notes.read_text(encoding="utf-8").splitlines()
        write_text(options.results, _as_text(results))
    if not options.page_only:
        if results["runs"] and results["seconds"] != options.seconds:
            allowed = f"{results['seconds']:g}, those of {options.results}"
            sys.exit(f"--seconds: got {options.seconds:g}; allowed: {allowed}")
        results |= {"seconds": options.seconds, "machine": describe()}
        wanted = [row for row in rows(options.seeds, options.problems) if not _is_there(row, results["runs"])]
        _measure(wanted, results, options)
    write_text(options.page, page.render(results))


def _measure(wanted: list[Row], results: dict[str, Any], options: argparse.Namespace) -> None:
    """Make runs, `workers` at a time, and write each to the file when it is done."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        futures = {pool.submit(measure, row, options.seconds): row for row in wanted}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                row, found = futures[future], future.result()
                results["runs"][row.key] = found
                write_text(options.results, _as_text(results))
                print(f"[{number}/{len(wanted)}] {row.key}: {_told(found)}", flush=True)
        except BaseException:  # a failed run is told at once, not when all behind it are over
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _told(found: dict[str, Any]) -> str:
    bound, distance = f"{found['bound']:.4f} nats", found["distance"]
    told = bound if distance is None else f"{bound}, distance {distance:.3f}"
    return f"{told}, {found['steps']} steps"


def _as_text(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=1, sort_keys=True) + "\n"


def read(path: Path) -> dict[str, Any]:
    """Results of a file, or none yet."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"runs": {}}


def _is_there(row: Row, runs: dict[str, Any]) -> bool:
    found = runs.get(row.key)
    # As JSON has it: lists for tuples.
    return found is not None and found["setup"] == json.loads(json.dumps(described(row.setup())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seconds", type=float, default=40.0, help="processor time of one run (default: 40)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time, a thread each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="page to write")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="lines to be kept: what follows from it")
    return parser


if __name__ == "__main__":
    main()
