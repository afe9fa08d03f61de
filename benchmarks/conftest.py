"""What every benchmark shares: its options and its device."""

import os

# torch.compile brings a second OpenMP runtime. Threads of one that spin while they wait, for milliseconds by
# default, hold up those of the other. OpenMP reads this once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
import torch

from benchmarks import rivals

if not torch.cuda.is_available():
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter is for tests: its time means nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-full", action="store_true", help="all sizes, the ones beyond cache included")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what could not be measured here: a table without a rival does not say that we beat it."""
    absent = rivals.absent()
    if absent:
        terminalreporter.section("rivals absent")
        for name, reason in sorted(absent.items()):
            terminalreporter.write_line(f"{name}: {reason}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
