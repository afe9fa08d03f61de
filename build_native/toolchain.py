"""Which compilers are on this machine and what each of them can do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_CUDA_ARCHS = ("80", "90")

# What each x86-64 level means, for compilers that predate the names (gcc < 11, clang < 12).
_V2_FLAGS = ("-msse3", "-mssse3", "-msse4.1", "-msse4.2", "-mpopcnt", "-mcx16", "-msahf")
_V3_FLAGS = (*_V2_FLAGS, "-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-mfma", "-mlzcnt", "-mmovbe")
_V4_FLAGS = (*_V3_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
_X86_LEVELS = {"v2": _V2_FLAGS, "v3": _V3_FLAGS, "v4": _V4_FLAGS}

_CXX_OF_CC = {"gcc": "g++", "clang": "clang++", "cc": "c++", "icx": "icpx"}


class Unavailable(Exception):
    """A part of the native core cannot be built here; the message says why."""


@dataclass(frozen=True)
class CxxCompiler:
    """A C++17 compiler that works, and the optional things it was seen to do."""

    command: tuple[str, ...]
    version: str
    isa_flags: Mapping[str, tuple[str, ...]]
    isa_left_out: Mapping[str, str] = field(default_factory=dict)
    openmp: bool = True


@dataclass(frozen=True)
class CudaCompiler:
    """An nvcc that answers, the architectures to build for and where its libraries are."""

    command: str
    version: str
    archs: tuple[str, ...]
    library_dirs: tuple[str, ...]


def find_cxx(env: Mapping[str, str]) -> CxxCompiler:
    """Find the C++ compiler that CXX or CC names, else one on PATH, and probe it."""
    command = _cxx_command(env)
    if not _compiles(command, ["-std=c++17", "-shared", "-fPIC"]):
        raise Unavailable(f"no C++ compiler: {_blame(env, command)} does not build C++17")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Unavailable("Python.h is missing (Debian: apt install python3-dev)")
    isa_flags, left_out = _probe_isa_levels(command)
    if not isa_flags:
        raise Unavailable("; ".join(f"{level}: {why}" for level, why in left_out.items()))
    return CxxCompiler(
        command=command,
        version=_first_line([*command, "--version"]),
        isa_flags=isa_flags,
        isa_left_out=left_out,
        # PyTorch's runtime, with every compiler: csrc/cpu/parallel.h. That of clang would be a second one.
        openmp=_compiles(command, ["-shared", "-fPIC", "-lgomp"]),
    )


def find_cuda(env: Mapping[str, str]) -> CudaCompiler:
    """Find nvcc by GGM_NVCC, CUDA_HOME or PATH."""
    command = _nvcc_command(env)
    try:
        text = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise Unavailable(f"nvcc does not run: {error}") from error
    version = re.search(r"release [\d.]+, V([\d.]+)", text)
    if version is None:
        raise Unavailable(f"{command} --version names no CUDA release")
    return CudaCompiler(
        command=command,
        version=version[1],
        archs=parse_archs(env.get("GGM_CUDA_ARCHS", "")),
        library_dirs=_nvcc_library_dirs(command),
    )


def parse_archs(text: str) -> tuple[str, ...]:
    """Read GGM_CUDA_ARCHS: numbers as in sm_NN, parted by ; or , or blanks; empty means default."""
    archs = tuple(re.split(r"[;,\s]+", text.strip(" \t;,"))) if text.strip() else DEFAULT_CUDA_ARCHS
    for arch in archs:
        if not re.fullmatch(r"[1-9]\d{1,2}[af]?", arch):
            raise ValueError(f"GGM_CUDA_ARCHS={text!r}: {arch!r} is not of the kind 80;90;120")
    return archs


def gencode_flags(archs: tuple[str, ...], *, ptx: bool = True) -> list[str]:
    """Machine code for every architecture and, for what comes after them, PTX of the last."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if ptx:
        flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    return flags


def _cxx_command(env: Mapping[str, str]) -> tuple[str, ...]:
    if env.get("CXX"):
        return tuple(shlex.split(env["CXX"]))
    if env.get("CC"):
        return _cxx_from_cc(env["CC"])
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name, path=env.get("PATH")):
            return (name,)
    raise Unavailable("no C++ compiler: CXX is unset and PATH holds none of g++, c++, clang++")


def _cxx_from_cc(cc: str) -> tuple[str, ...]:
    """Name the C++ driver that belongs to a C one; a CC of unknown name stands for itself."""
    words = shlex.split(cc)
    for i, word in enumerate(words):
        folder, name = os.path.split(word)
        match = re.fullmatch(r"(.*-)?(gcc|clang|cc|icx)(-[\d.]+)?", name)
        if match:
            prefix, base, suffix = match.groups(default="")
            words[i] = os.path.join(folder, prefix + _CXX_OF_CC[base] + suffix)
            break
    return tuple(words)


def _blame(env: Mapping[str, str], command: tuple[str, ...]) -> str:
    """The setting that chose the compiler, for it is what the reader can change."""
    for name in ("CXX", "CC"):
        if env.get(name):
            return f"{name}={env[name]}"
    return shlex.join(command)


def _compiles(command: tuple[str, ...], flags: list[str]) -> bool:
    """Whether a trivial program compiles and, unless the flags hold -c, links."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <cstdint>\nint probe() { return 0; }\n")
        line = [*command, *flags, str(source), "-o", str(Path(folder, "probe.out"))]
        try:
            done = subprocess.run(line, capture_output=True)
        except OSError:
            return False
        # /bin/true as a compiler returns 0 too: what counts is the output.
        return done.returncode == 0 and Path(folder, "probe.out").exists()


def _probe_isa_levels(
    command: tuple[str, ...],
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Flags of each instruction set to build for, and the ones the compiler does not know."""
    if not _first_line([*command, "-dumpmachine"]).startswith(("x86_64", "amd64")):
        return {"plain": ()}, {}
    flags: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for level, spelled_out in _X86_LEVELS.items():
        for candidate in ((f"-march=x86-64-{level}",), spelled_out):
            if _compiles(command, ["-c", *candidate]):
                flags[level] = candidate
                break
        else:
            left_out[level] = "unknown to the compiler"
    return flags, left_out


def _first_line(command: list[str]) -> str:
    text = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return text.splitlines()[0] if text else "unknown"


def _nvcc_command(env: Mapping[str, str]) -> str:
    if env.get("GGM_NVCC"):
        return env["GGM_NVCC"]
    if env.get("CUDA_HOME"):
        nvcc = Path(env["CUDA_HOME"], "bin", "nvcc")
        if nvcc.exists():
            return str(nvcc)
    nvcc_on_path = shutil.which("nvcc", path=env.get("PATH"))
    if nvcc_on_path is None:
        raise Unavailable("no nvcc: not in GGM_NVCC, CUDA_HOME/bin or PATH")
    return nvcc_on_path


def _nvcc_library_dirs(command: str) -> tuple[str, ...]:
    """Ask nvcc where it would link from; toolkits differ too much in layout for a guess."""
    line = [command, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    text = subprocess.run(line, capture_output=True, text=True).stderr
    libraries = re.search(r"^#\$ LIBRARIES=(.*)$", text, re.MULTILINE)
    words = shlex.split(libraries[1]) if libraries else []
    return tuple(word[2:] for word in words if word.startswith("-L"))
