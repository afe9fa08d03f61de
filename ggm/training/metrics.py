"""metrics.jsonl: one line per training step, without holes or repetitions however often a run was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ggm.files import read_text, write_text, writing


class Metrics:
    """The lines of a run; a context manager.

    Parameters
    ----------
    path : Path
        The file; its folder is made.
    step : int
        Steps that are done. Later lines, of a run that was killed after its last checkpoint, go.

    Raises
    ------
    OSError, ValueError
        If it cannot be written, or what is there was not written by this class.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(kept))
        self._path = path
        self._file: TextIO = path.open("a")

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append lines and hand them to the operating system."""
        with writing(self._path):
            self._file.writelines(json.dumps(line) + "\n" for line in lines)
            self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        # What could not be written is tried once more; the error of the first time tells more.
        with suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> Iterator[Mapping[str, Any]]:
    """Lines of a file that may not be there; a last line that was cut short is left out.

    Raises
    ------
    ValueError
        For a line of JSON that tells no step.
    """
    if not path.is_file():
        return
    # What a power cut leaves at the end need not be text.
    for number, text in enumerate(read_text(path, errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            return
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path}: line {number}: got no step; allowed: objects of JSON with a step")
        yield line
