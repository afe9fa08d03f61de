"""Compile .cu files with warnings as errors and report registers and spills of every kernel.

Usage: cuda_report.py FILE.cu ... [--archs 80;90]. Fails on a warning and on any spill,
and where it sees no kernel at all: then ptxas speaks another dialect than this script.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_native.ninja_plan import CUDA_FLAGS  # noqa: E402
from build_native.toolchain import find_cuda, gencode_flags, parse_archs  # noqa: E402

STRICT_FLAGS = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v"]


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one function on one architecture; bytes are per thread."""

    name: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> bool:
        """Whether it keeps registers in memory."""
        return self.spill_stores > 0 or self.spill_loads > 0


def main() -> int:
    """Report on the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--archs", default="80;90", help="as in GGM_CUDA_ARCHS")
    args = parser.parse_args()
    nvcc = find_cuda(os.environ).command
    logs = [compile_strictly(nvcc, file, parse_archs(args.archs)) for file in args.files]
    kernels = [kernel for log in logs if log is not None for kernel in parse_ptxas(log)]
    print(format_table(kernels))
    return verdict(kernels) if all(logs) and kernels else 1


def verdict(kernels: Iterable[Kernel]) -> int:
    """Name the kernels that spill; the exit code is 1 where there is one."""
    spilling = [kernel for kernel in kernels if kernel.spills]
    for kernel in spilling:
        print(f"SPILL: {kernel.name} on {kernel.arch}", file=sys.stderr)
    return 1 if spilling else 0


def compile_strictly(nvcc: str, file: Path, archs: tuple[str, ...]) -> str | None:
    """Return what ptxas says, or print the compiler's complaint and return None."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*CUDA_FLAGS, *STRICT_FLAGS, *gencode_flags(archs, ptx=False)]
        command = [nvcc, *flags, "-c", str(file.resolve()), "-o", str(Path(folder, "out.o"))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stderr + done.stdout
    lines = (done.stderr + done.stdout).splitlines()
    complaint = [line for line in lines if not re.match(r"ptxas info|    \d+ bytes stack", line)]
    print(f"{file} does not compile cleanly:", *complaint, sep="\n", file=sys.stderr)
    return None


def parse_ptxas(log: str) -> list[Kernel]:
    """Read the output of ``ptxas -v``; names come out demangled.

    A device function that was not inlined has lines of its own, without a register count.
    """
    found: list[Kernel] = []
    arch = name = "?"
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '\w+' for '(\w+)'", line):
            arch = match[1]
        elif match := re.search(r"Function properties for (\w+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", line):
            found.append(Kernel(name, arch, 0, *map(int, match.groups())))
        elif match := re.search(r"Used (\d+) registers", line):
            found[-1] = replace(found[-1], registers=int(match[1]))
    names = demangle([kernel.name for kernel in found])
    return [replace(kernel, name=name) for kernel, name in zip(found, names, strict=True)]


def demangle(names: list[str]) -> list[str]:
    """Readable names, without argument lists; unchanged where no demangler is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    return [shorten(name) for name in done.stdout.splitlines()]


def shorten(name: str) -> str:
    """Drop the return type of a template, the noise of anonymous namespaces and the arguments."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\((?:unsigned )?[\w:]+\)(?=\d)", "", name)  # casts, of enumerations too
    return name.split("(", 1)[0]


def format_table(kernels: list[Kernel]) -> str:
    """One line per kernel and architecture."""
    width = max((len(kernel.name) for kernel in kernels), default=6)
    lines = [f"{'kernel':<{width}}  arch   regs  stack  spill st/ld"]
    for k in sorted(kernels, key=lambda k: (k.name, k.arch)):
        spill = f"{k.spill_stores}/{k.spill_loads}"
        lines.append(f"{k.name:<{width}}  {k.arch:<6}{k.registers:>5}{k.stack:>7}  {spill:>11}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
