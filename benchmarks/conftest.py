"""What every benchmark shares: its options and its device."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter is for tests: its time means nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-full", action="store_true", help="all sizes, the ones beyond cache included")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
