"""How benchmarks take time: interleaved, what runs in between left out, and on a GPU by its own clock."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import test_linear_sigmoid_bce as head_benchmark
from benchmarks import timing
from benchmarks.timing import DeviceInstant, between_calls, empty_caches, seconds_once, times_faster


class Queue:
    """A GPU that takes a fixed time for every piece of work, and does nothing until somebody waits."""

    def __init__(self) -> None:
        self.submitted = self.done = 0.0

    def work(self, milliseconds: float) -> None:
        self.submitted += milliseconds


@pytest.fixture
def queue(monkeypatch) -> Queue:
    queue = Queue()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = queue.submitted

        def synchronize(self) -> None:
            queue.done = max(queue.done, self.at)

        def elapsed_time(self, later: "Event") -> float:
            assert queue.done >= later.at >= self.at  # torch raises for events that have not happened
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(timing, "instant", DeviceInstant)
    return queue


def test_a_gpu_is_timed_by_its_own_clock(queue):
    queue.work(100.0)  # from before: not of this call
    assert seconds_once(lambda: queue.work(3.0), before=lambda: queue.work(50.0)) == pytest.approx(3e-3)


def test_a_ratio_on_a_gpu(queue):
    calls = {"rival": lambda: queue.work(6.0), "ours": lambda: queue.work(1.5)}
    ratio = times_faster(calls["rival"], calls["ours"], 0.01, before=lambda: queue.work(40.0))
    assert ratio == pytest.approx(4.0)


def test_a_ratio_on_a_cpu_leaves_out_what_runs_in_between(monkeypatch):
    """On a clock of our own: on a busy machine a call that sleeps for 5 ms comes back after 10."""
    now = [0.0]

    def take(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing, "instant", lambda: now[0])
    ratio = times_faster(lambda: take(0.02), lambda: take(0.005), 0.01, before=lambda: take(0.02))
    assert ratio == pytest.approx(4.0)  # with it, (20 + 20) / (5 + 20) = 1.6


def test_only_a_gpu_has_its_caches_emptied_between_calls(monkeypatch):
    monkeypatch.setitem(timing._BEYOND_CACHE, "cpu", 8)
    empty_caches.cache_clear()
    # pytest-benchmark would take what a setup returns for arguments.
    assert empty_caches(torch.device("cpu"))() is None
    empty_caches.cache_clear()
    assert between_calls(torch.device("cpu")) is None


def test_benchmarks_use_that_clock(tmp_path):
    """And its reading reaches the results: copying 8 KiB takes less than a millisecond, and more than none."""
    results = tmp_path / "results.json"
    words = [
        "benchmarks/test_corrupt.py::test_copy[B=1-L=1024]",
        "--benchmark-only",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", *words, f"--benchmark-json={results}"]
    # In a worker of pytest-xdist pytest-benchmark times nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1], env=environment)
    (row,) = json.loads(results.read_text())["benchmarks"]
    assert row["options"]["timer"] == timing.instant.__name__
    assert 0 < row["stats"]["median"] < 1e-3


class SlowFlatness:
    """Of a kernel that the vocabulary costs ten times the time, and no memory."""

    calls = (lambda: None, lambda: None)
    large = SimpleNamespace(work=None)

    @classmethod
    def of(cls, device, what, shared):
        return cls()

    def time(self, device):
        return 10.0

    def memory(self):
        return 1, 1


@pytest.mark.parametrize("disabled", [False, True])
def test_a_run_that_times_nothing_demands_no_time(disabled, monkeypatch):
    """Whether benchmarks run is asked beside other work, which makes any ratio of times."""
    monkeypatch.setattr(head_benchmark, "Flatness", SlowFlatness)
    monkeypatch.setattr(head_benchmark, "case_of", lambda *_: SimpleNamespace(op="op", work=None))
    monkeypatch.setattr(head_benchmark, "replace", lambda case, **_: case)
    monkeypatch.setattr(head_benchmark, "times_faster", lambda *_: 1.0)

    def record(*_, **__):
        pass

    record.benchmark = SimpleNamespace(disabled=disabled, extra_info={})
    cpu = torch.device("cpu")

    def run():
        head_benchmark.test_the_vocabulary_costs_no_time_or_memory(record, {}, cpu, "forward", 0)

    if disabled:
        run()
    else:
        with pytest.raises(AssertionError):
            run()
