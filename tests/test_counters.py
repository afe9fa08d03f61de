"""The counts of emulated kernels: the page says what they are, and what grows is told."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_counters():
    sys.path.insert(0, str(ROOT / ".ci"))
    spec = importlib.util.spec_from_file_location("counters", ROOT / ".ci/counters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


counters = load_counters()
REPORT = json.loads(counters.REPORT.read_text())


def test_the_page_shows_the_report():
    page = counters.PAGE.read_text()
    assert counters.replace_table(page, counters.REPORT.name, counters.table(REPORT)) == page


def test_the_report_holds_every_case():
    assert list(REPORT) == [name for name, _, _ in counters.cases()]


@pytest.mark.parametrize("what", counters.COSTS)
def test_what_grew_is_told(what):
    grown = json.loads(json.dumps(REPORT))
    grown["top-k of 50"]["threshold_kernel"][what] = 2.0 * REPORT["top-k of 50"]["threshold_kernel"][what] + 1
    (line,) = counters.compare(REPORT, grown)
    assert line.startswith(f"top-k of 50: threshold_kernel: {counters.COSTS[what]} ")
    assert not counters.compare(grown, REPORT)


def test_kernels_and_cases_come_and_go():
    assert len(counters.compare(REPORT, {**REPORT, "new": {"kernel": {}}})) == 1
    assert len(counters.compare(REPORT, {name: {} for name in REPORT})) == len(REPORT)


def test_totals_are_shared_out_among_rows():
    totals = dict.fromkeys((*counters.SUMMED, "sectors_read", "votes", "votes_won"), 0)
    counts = counters.per_row(
        {**totals, "bytes_read": 640, "sectors_read": 10, "votes": 8, "votes_won": 2}, 4
    )
    assert (counts["bytes_read"], counts["passes"], counts["slow"], counts["logarithms"]) == (160, 2, 0.25, 0)
