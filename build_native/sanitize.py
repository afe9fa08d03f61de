"""``python -m build_native.sanitize``: the CPU kernels of each level under AddressSanitizer and UBSan.

The core is built once more, beside the ordinary one, and takes its place in the processes that run the tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from . import driver, ninja_plan, toolchain

ROOT = Path(__file__).resolve().parent.parent
# What holds the core of each op against the truth and against odd memory. The same without sanitizers is in
# tests/ggm_kernels/test_instruction_sets.py. Nothing that torch compiles: other processes would compile it.
TESTS = [
    f"tests/ggm_kernels/test_{name}.py"
    for name in (
        "random_steps",
        "random_losses",
        "linear_cross_entropy",
        "linear_expected_embedding",
        "corrupt",
        "commit",
        "denormals",
        "extreme_numbers",
        "glauber_shards",
        "memory",
        "noise",
        "philox",
        "skinny_product",
    )
]
CHOICE = ["-k", "(cpu or the_core or instruction_set) and not compile", "-p", "no:cacheprovider", "-q"]


def main() -> int:
    """Build, then test each instruction set that this processor has; 1 where one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m build_native.sanitize", description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=2000, help="random cases of each call (default %(default)s)"
    )
    parser.add_argument("--isa", action="append", help="an instruction set; default all that are here")
    parser.add_argument("--core", help=argparse.SUPPRESS)  # the process that runs tests
    parser.add_argument("--what", choices=("test", "list", "overrun"), default="test", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.core:
        return _in_process(Path(options.core), options.what)
    plan = ninja_plan.Plan(ROOT, toolchain.find_cxx(os.environ), None, sanitized=True)
    driver.run_ninja(ROOT, partial(ninja_plan.write, plan), os.environ)
    core = ROOT / plan.library
    environment = _environment(plan.cxx.command, options.cases)
    here = _start(core, environment, "list", subprocess.PIPE).stdout.split()
    if _start(core, environment, "overrun", subprocess.DEVNULL, subprocess.DEVNULL).returncode == 0:
        raise SystemExit("the sanitizers do not see a write past the end of an array")
    failed = []
    for isa in options.isa or here:
        started = time.monotonic()
        done = _start(core, {**environment, "GGM_KERNELS_ISA": isa}, "test")
        verdict = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
        print(f"=== {isa}: {verdict} in {time.monotonic() - started:.0f} s", flush=True)
        failed += [isa] * bool(done.returncode)
    left_out = sorted(set(plan.cxx.isa_flags) - set(here))
    print(f"=== not on this processor: {', '.join(left_out) or 'none'}")
    return int(bool(failed))


def _environment(compiler: tuple[str, ...], cases: int) -> dict[str, str]:
    """Variables under which a process that was not built with the sanitizers can load what was."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [
        subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip() for name in names
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves much to the end of the process
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "GGM_KERNELS_CASES": str(cases),
        "GGM_KERNELS_BACKEND": "",
        "PYTHONMALLOC": "malloc",
    }


def _start(
    core: Path, environment: dict[str, str], what: str, stdout: int | None = None, stderr: int | None = None
):
    command = [sys.executable, "-m", "build_native.sanitize", "--core", str(core), "--what", what]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr, text=True)


def _in_process(library: Path, what: str) -> int:
    """Load the core under the name of the ordinary one; test it, list its levels, or plant a fault."""
    spec = importlib.util.spec_from_file_location("ggm_kernels._native", library)
    assert spec is not None and spec.loader is not None
    import torch  # first, so that both share one OpenMP runtime

    core = importlib.util.module_from_spec(spec)
    sys.modules["ggm_kernels._native"] = core
    spec.loader.exec_module(core)
    if what == "list":
        print(*core.isas())
        return 0
    if what == "overrun":
        counters, words = torch.zeros(4, 4, dtype=torch.int32), torch.zeros(3, 4, dtype=torch.int32)
        core.cpu_philox(counters.data_ptr(), words.data_ptr(), 4, 0)
        return 0
    import pytest

    from ggm_kernels import native

    assert native.core is core
    return int(pytest.main([*TESTS, *CHOICE, "-m", "slow or not slow"]))


if __name__ == "__main__":
    sys.exit(main())
