"""What is compiled with which flags, written down as a build.ninja."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .toolchain import CudaCompiler, CxxCompiler, gencode_flags

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

_COMMON = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
# Exact arithmetic that gives the same bits everywhere: no contraction to fused multiply-add.
NUMERICS = ["-ffp-contract=off", "-fno-math-errno"]
WARNINGS = ["-Wall", "-Wextra"]
CUDA_FLAGS = ["-O3", "-std=c++17", "-Icsrc"]


# Slower code that ends the process where it leaves an array or the rules of C++.
_SANITIZED = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
]


@dataclass(frozen=True)
class Plan:
    """One configuration of the native core; `cuda` is None for a build without it."""

    root: Path
    cxx: CxxCompiler
    cuda: CudaCompiler | None
    sanitized: bool = False

    @property
    def build_dir(self) -> Path:
        """A folder per host compiler and Python, so that changing back and forth stays incremental.

        CUDA is no part of the name: with and without it the CPU objects are the same.
        """
        config = repr((self.cxx, sys.version, sysconfig.get_path("include")))
        config += "sanitized" * self.sanitized
        digest = hashlib.sha256(config.encode()).hexdigest()[:12]
        return Path("build", f"native-{sys.implementation.cache_tag}-{digest}")

    @property
    def library(self) -> Path:
        """Where the linker leaves the extension module."""
        return self.build_dir / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def write(plan: Plan) -> Path:
    """Write build.ninja (and the headers it needs) and return its path, relative to the root."""
    from ninja import ninja_syntax

    (plan.root / plan.build_dir).mkdir(parents=True, exist_ok=True)
    path = plan.build_dir / "build.ninja"
    with open(plan.root / path, "w") as file:
        writer = ninja_syntax.Writer(file)
        writer.variable("builddir", escape(plan.build_dir))
        _write_rules(writer, plan)
        objects = [*_bound_objects(writer, plan), *_cpu_objects(writer, plan)]
        objects += _cuda_objects(writer, plan)
        writer.build(escape(plan.library), "link", [escape(obj) for obj in objects])
    return path


def _write_rules(writer: Writer, plan: Plan) -> None:
    cxx = shell(plan.cxx.command)
    depfile = {"depfile": "$out.d", "deps": "gcc"}
    writer.rule("cxx", f"{cxx} $flags -MMD -MF $out.d -c $in -o $out", "C++ $out", **depfile)
    link = f"{cxx} -shared $in -o $out {shell(_link_flags(plan))}"
    writer.rule("link", link, "LINK $out")
    if plan.cuda:
        nvcc = shell([plan.cuda.command, *_host_compiler(plan)])
        writer.rule("nvcc", f"{nvcc} $flags -MD -MF $out.d -c $in -o $out", "CUDA $out", **depfile)


def _bound_objects(writer: Writer, plan: Plan) -> list[Path]:
    """Compile the baseline sources: the run-time choice of instruction set and the bindings.

    They are linked first, then the levels from low to high: of an inline function that several
    objects hold, the linker keeps the first, which must be one that every processor can run.
    """
    flags = [*_cxx_flags(plan), *_isa_defines(plan)]
    python = ["-isystem", str(stable_pybind11(plan.root)), "-isystem", sysconfig.get_path("include")]
    cuda = ["-DGGM_WITH_CUDA"] if plan.cuda else []
    objects = [_compile(writer, plan, Path("csrc/cpu/dispatch.cpp"), "base", flags)]
    for source in _sources(plan, "csrc/*.cpp"):
        objects.append(_compile(writer, plan, source, "base", [*flags, *cuda, *python]))
    return objects


def _cpu_objects(writer: Writer, plan: Plan) -> list[Path]:
    objects = []
    for level, isa_flags in plan.cxx.isa_flags.items():
        flags = [*_cxx_flags(plan), *isa_flags, f"-DGGM_ISA={level}"]
        for source in _sources(plan, "csrc/cpu/*.cpp"):
            if source.name != "dispatch.cpp":
                objects.append(_compile(writer, plan, source, level, flags))
    return objects


def _cuda_objects(writer: Writer, plan: Plan) -> list[Path]:
    if plan.cuda is None:
        return []
    host = ",".join(["-fPIC", "-fvisibility=hidden", *NUMERICS, *WARNINGS])
    flags = [*CUDA_FLAGS, *gencode_flags(plan.cuda.archs), "-Xcompiler", host]
    sources = _sources(plan, "csrc/cuda/*.cu")
    return [_compile(writer, plan, source, "cuda", flags, rule="nvcc") for source in sources]


def _compile(
    writer: Writer, plan: Plan, source: Path, kind: str, flags: list[str], rule: str = "cxx"
) -> Path:
    target = plan.build_dir / kind / source.with_suffix(".o").name
    writer.build(escape(target), rule, escape(source), variables={"flags": shell(flags)})
    return target


def _cxx_flags(plan: Plan) -> list[str]:
    openmp = ["-DGGM_WITH_GOMP"] if plan.cxx.openmp else []
    sanitizers = _SANITIZED if plan.sanitized else []
    return [*_COMMON, *NUMERICS, *WARNINGS, *openmp, *sanitizers, "-Icsrc"]


def _isa_defines(plan: Plan) -> list[str]:
    return [f"-DGGM_HAVE_ISA_{level}=1" for level in plan.cxx.isa_flags]


def _link_flags(plan: Plan) -> list[str]:
    flags = ["-lgomp"] if plan.cxx.openmp else []
    flags += _SANITIZED if plan.sanitized else []
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]  # Python itself resolves its symbols
    if plan.cuda:
        flags += [f"-L{folder}" for folder in plan.cuda.library_dirs]
        # Hidden, so that our static CUDA runtime and the one that torch loads never mix.
        flags += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]
    return flags


def _host_compiler(plan: Plan) -> list[str]:
    """Have nvcc use our compiler where one word names it; a wrapper such as ccache it cannot."""
    return ["-ccbin", plan.cxx.command[0]] if len(plan.cxx.command) == 1 else []


def stable_pybind11(root: Path) -> Path:
    """Copy pybind11's headers into the build folder.

    pip's isolation puts them under a new temporary path each time, which would rebuild everything.
    """
    import pybind11

    folder = Path("build", f"pybind11-{pybind11.__version__}")
    if not (root / folder).exists():
        unfinished = root / folder.with_name(folder.name + ".tmp")
        shutil.copytree(pybind11.get_include(), unfinished, dirs_exist_ok=True)
        unfinished.rename(root / folder)
    return folder


def _sources(plan: Plan, pattern: str) -> list[Path]:
    return sorted(path.relative_to(plan.root) for path in plan.root.glob(pattern))


def shell(words: Iterable[str]) -> str:
    """Quote words for the shell that ninja starts, and then for ninja."""
    return shlex.join(words).replace("$", "$$")


def escape(path: Path) -> str:
    """Escape a path for ninja's build lines and variables."""
    return path.as_posix().replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
