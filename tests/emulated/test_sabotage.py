"""Planted faults in csrc/cuda: each is seen by the check that it names, which passes without it."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import small_cases
from faults import FAULTS, Fault, build

from ggm_kernels import native
from ggm_kernels.backends import _named
from ggm_kernels.native.compiled import Kernels

SANITIZERS = ("asan", "tsan")
REPORTS = {"asan": "ERROR: AddressSanitizer", "tsan": "WARNING: ThreadSanitizer: data race"}


def test_there_are_enough_kinds():
    assert len(FAULTS) >= 12 and len({fault.kind for fault in FAULTS}) >= 6


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_seen(fault, tmp_path, monkeypatch):
    if fault.seen_by in SANITIZERS:
        assert_sanitizer_sees(fault, tmp_path)
        return
    module = load(build(fault, "plain", tmp_path))
    use(module, monkeypatch)
    # With every setting under which the check passes in test_launches.py: some faults show in one order only.
    seen = [check_with(module, fault, order, grid) for order in (0, 1, 12345) for grid in (0, 1)]
    assert any(seen)


def assert_sanitizer_sees(fault: Fault, folder: Path) -> None:
    program = build(fault, fault.seen_by, folder)
    environment = {**os.environ, "GGM_EMULATED_ORDER": "1"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and REPORTS[fault.seen_by] in done.stderr, done.stderr[:2000]
    assert fault.file in done.stderr


def check_with(module, fault: Fault, order: int, largest_grid: int) -> bool:
    """Whether the check that a fault names fails, as it should."""
    module.settings.order, module.settings.largest_grid = order, largest_grid
    if fault.seen_by.startswith("rendezvous: "):
        words = fault.seen_by.removeprefix("rendezvous: ")
        with pytest.raises(RuntimeError, match=words):
            small_cases.check_filters()
        return True
    try:
        getattr(small_cases, fault.seen_by)()
    except AssertionError:
        return True
    return False


def load(path: Path):
    # pybind11 gives a module of a name that it knows for the first one of that name.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}._emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use(module, monkeypatch) -> None:
    """Have the backend "emulated" call another build of it."""
    monkeypatch.setitem(native._KERNELS, "emulated", Kernels(module, True))
    _named.cache_clear()


@pytest.fixture(autouse=True)
def forget_what_serves():
    yield
    _named.cache_clear()
