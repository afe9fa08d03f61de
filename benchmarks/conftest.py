"""What every benchmark shares: its options and its device."""

import os

# torch.compile brings a second OpenMP runtime. Threads of one that spin while they wait, for milliseconds by
# default, hold up those of the other. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
import torch

from benchmarks import machine, rivals, summary
from benchmarks.ceilings import Ceilings
from benchmarks.recording import Recorder
from benchmarks.results_file import kept_row

if not torch.cuda.is_available():
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter is for tests: its time means nothing

_ceilings: dict[torch.device, Ceilings] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-full", action="store_true", help="all sizes, the ones beyond cache included")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Unless asked for otherwise: the clock of the device, and tables that fit a terminal."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return
    asked = config.invocation_params.args
    if not any(word.startswith("--benchmark-timer") for word in asked):
        config.option.benchmark_timer = "benchmarks.timing.instant"
    if not any(word.startswith("--benchmark-columns") for word in asked):
        config.option.benchmark_columns = ["median", "min", "rounds"]


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sum up, and list what could not be measured: a table without a rival does not say that we beat it."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    measured = [timed for timed in getattr(session, "benchmarks", []) if not timed.has_error]
    rows = [
        kept_row(timed.extra_info, timed.stats.median, timed.stats.rounds)
        for timed in measured
        if "op" in timed.extra_info
    ]
    told = list(summary.lines(rows))
    if told:
        terminalreporter.section("summary")
        for line in told:
            terminalreporter.write_line(line)
    absent = rivals.absent()
    if absent:
        terminalreporter.section("rivals absent")
        for name, reason in sorted(absent.items()):
            terminalreporter.write_line(f"{name}: {reason}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Write beside the results what they ran on, what it can do at best, and which rivals are missing."""
    machine_info["ggm"] = {
        **machine.describe(),
        "ceilings": {device.type: ceilings.measured() for device, ceilings in _ceilings.items()},
        "absent": dict(sorted(rivals.absent().items())),
    }


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def ceilings(device: torch.device) -> Ceilings:
    return _ceilings.setdefault(device, Ceilings(device))


@pytest.fixture
def record(benchmark, ceilings: Ceilings) -> Recorder:
    return Recorder(benchmark, ceilings)
