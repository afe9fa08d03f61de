"""Builds the native core as far as this machine can, and records what was left out and why."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import ninja_plan
from .toolchain import CudaCompiler, CxxCompiler, Unavailable, find_cuda, find_cxx


class DemandNotMet(Exception):
    """GGM_NATIVE=1 or GGM_CUDA=1 asked for what cannot be built."""


@dataclass(frozen=True)
class Outcome:
    """The built library, or None, and the record that goes into ``_build_info.json``."""

    library: Path | None
    info: dict[str, Any]


def build(root: Path, env: Mapping[str, str]) -> Outcome:
    """Build what the switches allow and the compilers manage; raise where a switch demands more."""
    want_native, want_cuda = _switch(env, "GGM_NATIVE"), _switch(env, "GGM_CUDA")
    if want_cuda and want_native is False:
        raise ValueError("GGM_CUDA=1 demands what GGM_NATIVE=0 forbids")
    started = time.monotonic()
    try:
        if want_native is False:
            raise Unavailable("forbidden by GGM_NATIVE=0")
        cxx = find_cxx(env)
        cuda, why_no_cuda = _choose_cuda(env, want_cuda)
        plan, cuda_failure = _build_with_fallback(root, env, cxx, cuda, want_cuda)
    except Unavailable as error:
        if want_native or want_cuda:
            name = "GGM_CUDA" if want_cuda else "GGM_NATIVE"
            raise DemandNotMet(f"{name}=1, but {error}") from error
        return Outcome(None, _record(env, native={"built": False, "reason": str(error)}))
    native = {"built": True, "seconds": round(time.monotonic() - started, 1)}
    info = _record(env, native=native, cxx=plan.cxx, cuda=plan.cuda, why_no_cuda=why_no_cuda or cuda_failure)
    return Outcome(root / plan.library, info)


def _switch(env: Mapping[str, str], name: str) -> bool | None:
    """Read a three-way switch: 1 demands, 0 forbids, unset or empty leaves it to the machine."""
    value = env.get(name, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{name} must be 0, 1 or unset, not {value!r}")
    return None if value == "" else value == "1"


def _choose_cuda(env: Mapping[str, str], want_cuda: bool | None) -> tuple[CudaCompiler | None, str | None]:
    if want_cuda is False:
        return None, "forbidden by GGM_CUDA=0"
    try:
        return find_cuda(env), None
    except Unavailable as error:
        if want_cuda:
            raise
        return None, str(error)


def _build_with_fallback(
    root: Path,
    env: Mapping[str, str],
    cxx: CxxCompiler,
    cuda: CudaCompiler | None,
    want_cuda: bool | None,
) -> tuple[ninja_plan.Plan, str | None]:
    """Build with CUDA where there is one; where that fails and nobody demands it, without."""
    plan = ninja_plan.Plan(root, cxx, cuda)
    try:
        run_ninja(root, partial(ninja_plan.write, plan), env)
        return plan, None
    except Unavailable as error:
        if cuda is None or want_cuda:
            raise
        plan = ninja_plan.Plan(root, cxx, None)
        run_ninja(root, partial(ninja_plan.write, plan), env)
        return plan, str(error)


def run_ninja(root: Path, write: Callable[[], Path], env: Mapping[str, str]) -> None:
    """Build what `write` writes down as a build.ninja; raise Unavailable with the compilers' complaint."""
    try:
        import ninja

        file = write()
    except ImportError as error:
        raise Unavailable(
            f"the Python package {error.name} is missing (pip install ninja pybind11, or build without "
            "--no-build-isolation)"
        ) from error
    command = [str(Path(ninja.BIN_DIR, "ninja")), "-f", str(file)]
    if env.get("MAX_JOBS"):
        command += ["-j", env["MAX_JOBS"]]
    done = subprocess.run(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout, end="", file=sys.stderr)
    if done.returncode:
        raise Unavailable(f"the build failed: {first_error(done.stdout)}")


def first_error(output: str) -> str:
    """Pick the line of the compilers' output that tells most, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in (" error: ", ": error", "error", "fatal", "undefined reference"):
        for line in lines:
            if mark in line:
                return line
    return lines[-1] if lines else "no output"


def _record(
    env: Mapping[str, str],
    *,
    native: dict[str, Any],
    cxx: CxxCompiler | None = None,
    cuda: CudaCompiler | None = None,
    why_no_cuda: str | None = None,
) -> dict[str, Any]:
    # SOURCE_DATE_EPOCH: the custom by which distributions get the same bytes from every build.
    when = time.gmtime(float(env.get("SOURCE_DATE_EPOCH") or time.time()))
    record: dict[str, Any] = {
        "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}",
        "native": native,
    }
    if cxx is not None:
        record["compiler"] = cxx.version
        record["isa"] = {"built": list(cxx.isa_flags), "left_out": dict(cxx.isa_left_out)}
        record["openmp"] = cxx.openmp
        record["cuda"] = {"built": cuda is not None, "reason": why_no_cuda}
        if cuda is not None:
            record["cuda"].update(nvcc=cuda.version, archs=list(cuda.archs), ptx=cuda.archs[-1])
    return record
