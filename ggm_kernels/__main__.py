"""``python -m ggm_kernels``: what the build made, and what is there now."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

import ggm_kernels
from ggm_kernels import build_info


def main() -> None:
    """Print the record of the build, then the live state of every backend."""
    print(f"ggm-kernels {ggm_kernels.__version__} in {Path(ggm_kernels.__file__).parent}")
    print("\nBuild")
    info = build_info.read()
    rows = build_rows(info, _library())
    stale = build_info.why_stale(info, Path(ggm_kernels.__file__).parents[1])
    print(build_info.align([*rows, ("stale", stale)] if stale else rows))
    print("\nNow")
    print(build_info.align([("torch", _torch_text()), *backend_rows(ggm_kernels.backends())]))


def build_rows(info: dict[str, Any] | None, library: str | None) -> list[tuple[str, str]]:
    """Tell the record and the file that it speaks of, and where the two disagree."""
    if info is None:
        rows = [("record", f"none ({build_info.FILE_NAME} is missing): not installed by pip?")]
        return [*rows, ("library", library or "none")]
    rows = build_info.describe(info)
    if info["native"]["built"]:
        return [*rows, ("library", library or "missing, though it was built: install again")]
    return [*rows, ("library", f"{library}, left by another build")] if library else rows


def backend_rows(backends: dict[str, ggm_kernels.Backend]) -> list[tuple[str, str]]:
    """Each backend with what it runs on and its public ops, or with why it is not there."""
    rows = []
    for name, state in backends.items():
        rows.append((name, f"{'yes' if state.available else 'no '}  {state.reason}"))
        if state.available:
            public = sorted(state.ops.intersection(ggm_kernels.__all__))
            rows.append(("", f"     {', '.join(public) or 'no ops'}"))
    return rows


def _library() -> str | None:
    """File name of the native core, found without loading it."""
    spec = importlib.util.find_spec("ggm_kernels._native")
    return Path(spec.origin).name if spec and spec.origin else None


def _torch_text() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}"


def _print_to_whoever_reads() -> None:
    """Run main; end in silence where the reader, `head` say, has gone."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer is written once more at exit: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    _print_to_whoever_reads()
