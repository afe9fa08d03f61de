"""The compiled core: loading it, and what every call of it needs: kernels, pointers, queues, memory."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before the core, so that both share one OpenMP runtime

from ggm_kernels import build_info
from ggm_kernels.native import missing_core

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Float in csrc/kernels.h
_LAZY_FROM = 2**22  # bytes; less stays in cache when it is zeroed, and comes from memory used before


def _load() -> tuple[Any, str | None]:
    """The compiled core, or why there is none."""
    try:
        from ggm_kernels import _native  # type: ignore[attr-defined]
    except ImportError as error:
        return None, missing_core.cause(build_info.read(), str(error))
    if _native.isa() is None:
        return None, "this processor has none of the instruction sets that the core was built for"
    stale = build_info.why_stale(build_info.read(), Path(build_info.__file__).parents[1])
    if stale is not None:
        warnings.warn(f"{stale}; until then calls may fail or take arguments for others", stacklevel=2)
    wanted = os.environ.get("GGM_KERNELS_ISA")
    if wanted and not _native.select_isa(wanted):
        raise ValueError(f"GGM_KERNELS_ISA: got {wanted!r}; allowed here: {', '.join(_native.isas())}")
    return _native, None


def _load_emulated() -> tuple[Any, str | None]:
    """The module of csrc/emulated, which only a checkout builds and only tests use, or why there is none."""
    path = os.environ.get("GGM_KERNELS_EMULATED")
    if not path:
        return (
            None,
            "for tests of csrc/cuda on the CPU; `make emulated` in a checkout builds it",
        )
    spec = importlib.util.spec_from_file_location("_emulated", path)
    if spec is None or spec.loader is None:
        return None, f"GGM_KERNELS_EMULATED is no extension module: {path}"
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"GGM_KERNELS_EMULATED: {error}"
    return module, None


core, LOAD_ERROR = _load()
emulated, EMULATED_LOAD_ERROR = _load_emulated()


@dataclass(frozen=True)
class Kernels:
    """Kernels that serve a call: those of csrc/cpu, or those of csrc/cuda, on a GPU or emulated.

    Attributes
    ----------
    core : module
        Whose structs and functions are called.
    are_device_code : bool
        Whether they are those of csrc/cuda, which take memory of their device, a stream and its index.
    """

    core: Any
    are_device_code: bool

    def step_arguments(self, step: int | torch.Tensor) -> tuple[int, int]:
        """Value and device address of the step: one is meant, the other 0."""
        if isinstance(step, int):
            return step, 0
        if not self.are_device_code or (self is CUDA and not step.is_cuda):
            return int(step), 0
        return 0, step.data_ptr()

    def queue(self, device: torch.device) -> dict[str, int]:
        """Stream and index of the device."""
        if self is not CUDA:
            return {"stream": 0, "device": 0}
        return {"stream": torch.cuda.current_stream(device).cuda_stream, "device": device.index}


CPU = Kernels(core, False)
CUDA = Kernels(core, True)
EMULATED = Kernels(emulated, True)


def rows_contiguous(matrix: torch.Tensor) -> torch.Tensor:
    """`matrix`, copied if its rows are not contiguous each."""
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def empty(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised, shaped like a contiguous tensor: beyond cache in the huge pages that numpy asks for."""
    if like.is_cuda or like.numel() * dtype.itemsize < _LAZY_FROM:
        return torch.empty_like(like, dtype=dtype)
    return (
        torch.from_numpy(np.empty(like.numel() * dtype.itemsize, dtype=np.uint8)).view(dtype).view(like.shape)
    )


def zeros(
    shape: tuple[int, ...], dtype: torch.dtype, rows_written: int, device: torch.device
) -> torch.Tensor:
    """Zeros of which at most `rows_written` rows will be written.

    Fresh pages of the system are zero: torch.zeros would write them once more, page fault by page fault.
    Few rows of many touch few small pages, and the rest takes no memory; otherwise huge pages, which numpy
    asks for, are the quickest to come by.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LAZY_FROM or device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    if rows_written * 8 > shape[0]:
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a wish, which not every system has or grants
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def address(tensor: torch.Tensor | None) -> int:
    """Address of the data; null for None."""
    return 0 if tensor is None else tensor.data_ptr()
