"""Device code under AddressSanitizer and ThreadSanitizer: no access out of bounds, no race, whatever the order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from build_native.emulated import Plan
from build_native.toolchain import find_cxx

ROOT = Path(__file__).resolve().parents[2]


def plan_of(variant: str) -> Plan:
    plan = Plan(ROOT, find_cxx(os.environ), variant)
    if not (ROOT / plan.program).exists():
        pytest.skip(f"not built: python -m build_native.emulated {variant}")
    return plan


@pytest.mark.parametrize(("order", "largest_grid"), [(0, 0), (1, 1), (7, 3), (0, 3), (7, 0)])
@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_every_kernel_is_clean(variant, order, largest_grid):
    environment = {
        **os.environ,
        "GGM_EMULATED_ORDER": str(order),
        "GGM_EMULATED_LARGEST_GRID": str(largest_grid),
        "GGM_EMULATED_PROCESSORS": "132",
    }
    program = ROOT / plan_of(variant).program
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr[:3000]
    cases = (ROOT / "csrc/emulated/cases.cpp").read_text().count("      named(") + 1
    assert len(done.stdout.splitlines()) == cases > 20


def test_calls_from_python_stay_in_bounds():
    """The whole way from the public calls, with memory that PyTorch allocates."""
    plan = plan_of("asan")
    runtime = subprocess.check_output([*plan.cxx.command, "-print-file-name=libasan.so"], text=True).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "GGM_KERNELS_EMULATED": str(ROOT / plan.library),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent))),
    }
    code = "import small_cases\nfor check in small_cases.ALL: check()\nprint('clean')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout == "clean\n", done.stderr[:3000]
