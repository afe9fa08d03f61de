"""Progress: bars on a terminal, which need the optional package tqdm; a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ggm.extras import require

# Seconds between lines where there is no terminal: a log keeps all of them.
LINE_EVERY = 30.0
_LIBRARIES = ("datasets.utils", "huggingface_hub.utils")


def progress_bar(show: bool, total: float, description: str, *, initial: float = 0.0, **options: Any) -> Any:
    """A tqdm bar, lines in its place where there is no terminal, or something silent; a context manager.

    Parameters
    ----------
    show : bool
        Whether to show it. If not, tqdm need not be installed.
    total : float
        What counts as done.
    description : str
        Text before the bar.
    initial : float
        What is done already.
    **options
        Passed on to tqdm.

    Raises
    ------
    MissingExtraError
        If it is to be shown on a terminal and tqdm is not installed.
    """
    if not show:
        return _Silent()
    if not sys.stderr.isatty():
        return _Lines(total, description, initial)
    tqdm = require("tqdm", extra="demo")
    return tqdm.tqdm(total=total, desc=description, initial=initial, dynamic_ncols=True, **options)


@contextmanager
def library_bars(show: bool) -> Iterator[None]:
    """Keep the bars of `datasets` and `huggingface_hub` off the screen unless `show`, and off logs at all."""
    found = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    shown = [library for library in found if not library.are_progress_bars_disabled()]
    hidden = [] if show and sys.stderr.isatty() else shown
    for library in hidden:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in hidden:
            library.enable_progress_bars()


def say(line: str, stream: TextIO) -> None:
    """Write a line in one piece: several processes may share what it goes to, and Python be unbuffered."""
    stream.write(f"{line}\n")
    stream.flush()


class _Silent:
    """Stands in for a bar that is not shown."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, amount: float = 1) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def refresh(self) -> None:
        pass


class _Lines(_Silent):
    """Stands in for a bar where there is no terminal: lines `LINE_EVERY` seconds apart, one at the end."""

    def __init__(self, total: float, description: str, initial: float) -> None:
        self._total, self._description, self._postfix = total, description, ""
        self._initial = self._done = initial
        self._started = self._told = time.perf_counter()
        self._shown: tuple[float, str] | None = None

    def update(self, amount: float = 1) -> None:
        """Count what was done; tell of it if it is time to."""
        self._done += amount
        if time.perf_counter() - self._told >= LINE_EVERY:
            self._tell()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set what the next line ends with."""
        self._postfix = text

    def refresh(self) -> None:
        """Tell at once; at the end nothing is told twice."""
        self._tell()
        self._shown = self._state()

    def __exit__(self, *exception: object) -> None:
        if not any(exception) and self._state() != self._shown:
            self._tell()

    def _state(self) -> tuple[float, str]:
        return self._done, self._postfix

    def _tell(self) -> None:
        self._told = time.perf_counter()
        elapsed, made = self._told - self._started, self._done - self._initial
        share = self._done / self._total if self._total else 1.0  # there may be nothing to do
        parts = [f"{share:.0%}", f"{_clock(elapsed)} gone"]
        if made > 0:
            parts.append(f"{_clock(max(0.0, self._total - self._done) * elapsed / made)} left")
        if self._postfix:
            parts.append(self._postfix)
        say(f"{self._description}: {', '.join(parts)}", sys.stderr)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
