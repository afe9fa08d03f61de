"""Several runs on one machine as one: benchmarks run in processes of their own, so that none spoils others.

    python -m benchmarks.merge RESULTS.json ... --keep FOLDER

Takes JSON of pytest-benchmark, or kept results; writes what is worth keeping of all of them to FOLDER, as
`benchmarks.report` does of one, and sums up.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results_file, summary


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kept results with the rows of all, in their order; of a ceiling measured twice, the first.

    Raises
    ------
    ValueError
        If the parts are of different machines, versions or commits: their rows are not comparable.
    """
    first = parts[0]
    for part in parts[1:]:
        for name, ours, theirs in _identities(first, part):
            if ours != theirs:
                raise ValueError(f"{name}: got {theirs!r} beside {ours!r}; allowed: results of one machine")
    ceilings: dict[str, dict[str, dict[str, float]]] = {}
    absent: dict[str, str] = {}
    for part in parts:
        absent = {**part["machine"]["absent"], **absent}
        for device, kinds in part["machine"]["ceilings"].items():
            for kind, rates in kinds.items():
                known = ceilings.setdefault(device, {}).setdefault(kind, {})
                known.update({size: rate for size, rate in rates.items() if size not in known})
    for kinds in ceilings.values():
        copies = kinds.get("copy_GB_per_s", {})
        kinds["copy_GB_per_s"] = {size: copies[size] for size in sorted(copies, key=int)}
    machine = {**first["machine"], "ceilings": ceilings, "absent": dict(sorted(absent.items()))}
    return {**first, "machine": machine, "rows": [row for part in parts for row in part["rows"]]}


def _identities(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    facts = ("cpu", "cores", "gpu", "versions", "backends")
    pairs = [(name, first["machine"][name], other["machine"][name]) for name in facts]
    return [("commit", first["commit"], other["commit"]), *pairs]


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON of pytest-benchmark, or kept results")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", required=True, help="where to write")
    options = parser.parse_args(words)
    kept = merge([results_file.read(path) for path in options.results])
    path = results_file.keep(kept, options.keep)
    print(*summary.lines(kept["rows"]), f"{len(kept['rows'])} rows in {path}", sep="\n")


if __name__ == "__main__":
    main()
