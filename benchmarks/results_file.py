"""Results of a run: read from pytest-benchmark's JSON, or from what was kept of it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Extents that tell cases of one op apart, and what they are.
SYMBOLS = {
    "B": "sequences",
    "L": "positions per sequence",
    "K": "positions per step",
    "N": "rows",
    "C": "candidates per row",
    "V": "vocabulary",
    "d": "hidden size",
}


@dataclass(frozen=True)
class Row:
    """One implementation of one case.

    Attributes
    ----------
    implementation, role : str
        Its name, and "ours", "reference", "rival" or "floor".
    seconds : float
        Median time of a call.
    notes : mapping
        What else was measured: memory, share of the ceiling, rates, ratios.
    """

    implementation: str
    role: str
    seconds: float
    notes: Mapping[str, Any]

    @property
    def memory(self) -> float | None:
        """Peak extra memory in MB."""
        return self.notes.get("peak_extra_MB")

    @property
    def share(self) -> float | None:
        """Share of the machine's ceiling."""
        return self.notes.get("share_of_ceiling")


@dataclass(frozen=True)
class Case:
    """One task of one size, and everybody who did it."""

    op: str
    size: Mapping[str, int]
    rows: tuple[Row, ...]

    @property
    def ours(self) -> Row | None:
        """Our fastest kernel."""
        return self._fastest("ours")

    @property
    def rival(self) -> Row | None:
        """The fastest rival."""
        return self._fastest("rival")

    @property
    def ratio(self) -> float | None:
        """Time of the fastest rival over ours."""
        return None if self.ours is None or self.rival is None else self.rival.seconds / self.ours.seconds

    def _fastest(self, role: str) -> Row | None:
        return min((row for row in self.rows if row.role == role), key=lambda row: row.seconds, default=None)


@dataclass(frozen=True)
class Results:
    """A run: its rows by case, in the order in which they were measured, and what it ran on."""

    machine: Mapping[str, Any]
    commit: str
    date: str
    cases: tuple[Case, ...]

    @property
    def slug(self) -> str:
        """The machine in words that a file name can hold."""
        name = self.machine["gpu"] or f"{self.machine['cpu']} {self.machine['cores']} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def by_op(self) -> dict[str, list[Case]]:
        """Cases of each op."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.op, []).append(case)
        return found

    def headlines(self) -> Iterator[Case]:
        """The case of each op that most implementations ran, the last of equals; variants left out."""
        for op, cases in self.by_op().items():
            if "," not in op:
                yield max(reversed(cases), key=lambda case: len(case.rows))


def slim(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of pytest-benchmark's JSON: no raw times, no host name, no path."""
    commit = raw["commit_info"]
    rows = [
        kept_row(benchmark["extra_info"], benchmark["stats"]["median"], benchmark["stats"]["rounds"])
        for benchmark in raw["benchmarks"]
    ]
    return {
        "date": raw["datetime"][:10],
        "commit": commit["id"][:12] + (" and changes on top" if commit["dirty"] else ""),
        "machine": raw["machine_info"]["ggm"],
        "rows": rows,
    }


def kept_row(extra_info: Mapping[str, Any], seconds: float, rounds: int) -> dict[str, Any]:
    """One implementation of one case, from what a benchmark noted and its median time."""
    notes = dict(extra_info)
    row = {key: notes.pop(key) for key in ("op", "size", "implementation", "role")}
    return {**row, "seconds": seconds, "rounds": rounds, "notes": notes}


def read(path: Path) -> dict[str, Any]:
    """What is kept of the results at `path`, whichever of the two forms they have."""
    content = json.loads(path.read_text())
    return slim(content) if "benchmarks" in content else content


def keep(kept: Mapping[str, Any], folder: Path) -> Path:
    """Write the results to `folder` under the machine's name and the date; return the file."""
    path = folder / f"{parse(kept).slug}-{kept['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in kept["rows"])  # a row a line: differences can be read
    head = json.dumps({key: kept[key] for key in ("date", "commit", "machine")}, indent=1)[:-2]
    path.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
    return path


def parse(kept: Mapping[str, Any]) -> Results:
    """Results from what was kept of them."""
    return Results(kept["machine"], kept["commit"], kept["date"], cases_of(kept["rows"]))


def cases_of(kept_rows: Iterable[Mapping[str, Any]]) -> tuple[Case, ...]:
    """Rows of one case brought together; of an implementation measured twice, the first."""
    cases: dict[tuple, dict[str, Row]] = {}
    for row in kept_rows:
        rows = cases.setdefault((row["op"], tuple(row["size"].items())), {})
        name = row["implementation"]
        rows.setdefault(name, Row(name, row["role"], row["seconds"], row["notes"]))
    return tuple(Case(op, dict(size), tuple(rows.values())) for (op, size), rows in cases.items())
