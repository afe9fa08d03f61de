"""metrics.jsonl: one line per training step, without holes or repetitions however often a run was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO


class Metrics:
    """The lines of a run; a context manager.

    Parameters
    ----------
    path : Path
        The file; its folder is made.
    step : int
        Steps that are done. Later lines, of a run that was killed after its last checkpoint, go.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(kept))
        aside.replace(path)
        self._file: TextIO = path.open("a")

    def write(self, lines: list[dict[str, float]]) -> None:
        """Append lines and hand them to the operating system."""
        self._file.writelines(json.dumps(line) + "\n" for line in lines)
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[Mapping[str, float]]:
    """Lines of a file that may not be there; a last line that was cut short is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
