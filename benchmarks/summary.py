"""The end of a run in plain words: one line per op."""

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.results_file import Case, Results, cases_of
from benchmarks.words import seconds_words, size_words

HEAD = ("op", "size", "ours", "best rival", "its time", "ours is", "share of the limit")
EVEN = 0.03  # a smaller difference is not told
LIMITS = {"copy": "copying its bytes", "matrix": "the matrix product"}
LEGEND = """\
best rival: the fastest of what was measured here and is not ours. limit: what this machine reached in this
run, copying as many bytes as the op must read and write, or multiplying large matrices."""


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What was faster than what, by how much, and how close to the limit; nothing if no op has a rival.

    `rows` are those of kept results (`results_file.slim`).
    """
    results = Results({}, "", "", cases_of(rows))
    table = [cells(case) for case in results.headlines() if case.ours and case.rival]
    if not table:
        return
    table = [HEAD, *table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
    yield from LEGEND.splitlines()


def cells(case: Case) -> tuple[str, ...]:
    """An op's line of the table."""
    ours, rival = case.ours, case.rival
    faster = f"{case.ratio:.3g}x faster" if case.ratio >= 1 else f"{1 / case.ratio:.3g}x slower"
    if abs(case.ratio - 1) < EVEN:
        faster = "as fast"
    share = f"{100 * ours.share:.2g} % of {LIMITS[ours.notes['ceiling']]}" if ours.share is not None else ""
    times = seconds_words(ours.seconds), rival.implementation, seconds_words(rival.seconds)
    return (case.op, size_words(case), *times, faster, share)
