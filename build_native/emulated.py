"""Builds csrc/cuda for the CPU, for tests: the module ``_emulated`` and the program ``cases``. In no wheel.

Usage: ``python -m build_native.emulated [VARIANT ..]`` prints what it built, a line for each variant.

A variant ``plain`` runs what any host compiles; ``device`` runs the branches for ``__CUDA_ARCH__``, on
stand-ins of their intrinsics, and counts accesses to global memory: with ThreadSanitizer's instrumentation,
but not its runtime. ``asan`` and ``tsan`` are those branches under AddressSanitizer and ThreadSanitizer; the
latter is a program alone, for a module of it would ask the same of Python.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .driver import run_ninja
from .ninja_plan import NUMERICS, WARNINGS, escape, shell, stable_pybind11
from .toolchain import CxxCompiler, find_cxx

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

ROOT = Path(__file__).resolve().parent.parent
_FOLDER = Path("build", "emulated")
_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Icsrc", "-DGGM_ON_HOST", *NUMERICS, *WARNINGS]
_DEVICE_CODE = ["-x", "c++", "-include", "emulated/device.h", "-Wno-unknown-pragmas"]  # nvcc's
_DEVICE_BRANCHES = "-D__CUDA_ARCH__=800"
_EMULATOR = ("emulator", "fiber", "sectors", "shared_memory")
_LINKER_SCRIPT = "csrc/emulated/shared_memory.ld"


@dataclass(frozen=True)
class Variant:
    """Flags of device code, of the emulator (never sanitized) and of the linker; what is linked."""

    device: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    makes: tuple[str, ...] = ("library",)


VARIANTS = {
    "plain": Variant(("-O2",)),
    "device": Variant(("-O2", _DEVICE_BRANCHES, "-fsanitize=thread"), ("-DGGM_COUNTS_ACCESSES",)),
    "asan": Variant(
        ("-O1", "-g1", _DEVICE_BRANCHES, "-fsanitize=address"),
        ("-DGGM_ASAN",),
        ("-fsanitize=address",),
        ("library", "program"),
    ),
    "tsan": Variant(
        ("-O1", "-g1", _DEVICE_BRANCHES, "-fsanitize=thread"),
        ("-DGGM_TSAN",),
        ("-fsanitize=thread",),
        ("program",),
    ),
}


@dataclass(frozen=True)
class Plan:
    """One variant, of sources under `root`, in a folder of its own. Paths are relative to the root."""

    root: Path
    cxx: CxxCompiler
    name: str

    @property
    def variant(self) -> Variant:
        """Its flags."""
        return VARIANTS[self.name]

    @property
    def build_dir(self) -> Path:
        """Where its objects are."""
        return _FOLDER / self.name

    @property
    def library(self) -> Path:
        """The module."""
        return self.build_dir / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"

    @property
    def program(self) -> Path:
        """The program that runs every kernel on small inputs."""
        return self.build_dir / "cases"

    def device_objects(self) -> dict[Path, Path]:
        """Sources of device code, each with its object."""
        sources = sorted(path.relative_to(self.root) for path in self.root.glob("csrc/cuda/*.cu"))
        return {source: self.build_dir / f"{source.stem}.cuda.o" for source in sources}

    def device_flags(self) -> list[str]:
        """How device code is compiled."""
        return [*_DEVICE_CODE, *_FLAGS, *self.variant.device]

    def link_flags(self, product: Path) -> list[str]:
        """How a product is linked."""
        shared = ["-shared"] if product == self.library else []
        return [*shared, *self.variant.link, f"-Wl,-T,{_LINKER_SCRIPT}"]

    def host_objects(self, product: Path) -> list[Path]:
        """What a product holds besides device code."""
        emulator = [self.build_dir / f"{name}.o" for name in _EMULATOR]
        if product == self.library:
            return [*_bindings().values(), *emulator]
        return [*emulator, self.build_dir / "cases.o"]

    def products(self) -> list[Path]:
        """What the variant is built for."""
        return [self.library if made == "library" else self.program for made in self.variant.makes]


def build(root: Path, names: Sequence[str], env: Mapping[str, str]) -> list[Plan]:
    """Build variants, or raise `toolchain.Unavailable`; return what says where they are."""
    cxx = find_cxx(env)
    plans = [Plan(root, cxx, name) for name in names]
    run_ninja(root, partial(write, root, plans), env)
    return plans


def write(root: Path, plans: Sequence[Plan]) -> Path:
    """Write one build.ninja for all variants and return its path, relative to the root."""
    from ninja import ninja_syntax

    (root / _FOLDER).mkdir(parents=True, exist_ok=True)
    path = _FOLDER / "build.ninja"
    with open(root / path, "w") as file:
        writer = ninja_syntax.Writer(file)
        writer.variable("builddir", escape(_FOLDER))
        cxx = shell(plans[0].cxx.command)
        command = f"{cxx} $flags -MMD -MF $out.d -c $in -o $out"
        writer.rule("cxx", command, "C++ $out", depfile="$out.d", deps="gcc")
        writer.rule("link", f"{cxx} $in -o $out $flags", "LINK $out")
        python = ["-isystem", str(stable_pybind11(root)), "-isystem", sysconfig.get_path("include")]
        for source, target in _bindings().items():  # the same in all variants
            _compile(writer, source, target, [*_FLAGS, "-O1", *python])
        for plan in plans:
            _write_variant(writer, plan)
    return path


def _bindings() -> dict[Path, Path]:
    sources = [Path("csrc/bindings.cpp"), Path("csrc/emulated/bindings.cpp")]
    return {source: _FOLDER / "bindings" / f"{source.parent.name}_bindings.o" for source in sources}


def _write_variant(writer: Writer, plan: Plan) -> None:
    for name in (*_EMULATOR, "cases"):
        flags = [*_FLAGS, "-O2", *plan.variant.emulator]
        _compile(writer, Path("csrc/emulated", f"{name}.cpp"), plan.build_dir / f"{name}.o", flags)
    for source, target in plan.device_objects().items():
        _compile(writer, source, target, plan.device_flags())
    for product in plan.products():
        linked = [*plan.host_objects(product), *plan.device_objects().values()]
        link_flags = {"flags": shell(plan.link_flags(product))}
        writer.build(
            escape(product), "link", [escape(path) for path in linked], _LINKER_SCRIPT, variables=link_flags
        )


def _compile(writer: Writer, source: Path, target: Path, flags: Sequence[str]) -> None:
    writer.build(escape(target), "cxx", escape(source), variables={"flags": shell(flags)})


def main() -> int:
    """Build the variants of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(VARIANTS)}; all")
    names = parser.parse_args().variants or list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"VARIANT: got {', '.join(sorted(unknown))}; allowed: {', '.join(VARIANTS)}")
    for plan in build(ROOT, names, os.environ):
        print(plan.name, *(ROOT / path for path in plan.products()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
