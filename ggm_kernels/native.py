"""The compiled core behind the backends "cpu" and "cuda": pointers, streams and threads."""

from __future__ import annotations

import os
from typing import Any

import torch  # before the core, so that both share one OpenMP runtime

_OPS = ("corrupt",)


def _load() -> tuple[Any, str | None]:
    """The compiled core, or why there is none."""
    try:
        from ggm_kernels import _native  # type: ignore[attr-defined]
    except ImportError as error:
        return None, str(error)
    if _native.isa() is None:
        return None, "this processor has none of the instruction sets that the core was built for"
    wanted = os.environ.get("GGM_KERNELS_ISA")
    if wanted and not _native.select_isa(wanted):
        raise ValueError(f"GGM_KERNELS_ISA: got {wanted!r}; allowed here: {', '.join(_native.isas())}")
    return _native, None


core, _LOAD_ERROR = _load()


def why_not(backend: str) -> str | None:
    """Why the backend "cpu" or "cuda" cannot serve, and how to get it; None if it can."""
    if core is None:
        return f"no compiled core ({_LOAD_ERROR}): install a C++ compiler, then pip install again"
    if backend == "cpu":
        return None
    if not hasattr(core, "cuda_corrupt"):
        return "built without CUDA: install the CUDA toolkit (nvcc), then pip install again with GGM_CUDA=1"
    if not torch.cuda.is_available():
        return "no CUDA device that PyTorch can use"
    return None


def describe(backend: str) -> str:
    """What the backend runs on."""
    if backend == "cpu":
        return f"C++, instruction set {core.isa()}, {torch.get_num_threads()} threads"
    return f"CUDA C++, {torch.cuda.get_device_name()}"


def ops(backend: str) -> frozenset[str]:
    """The ops that the backend implements."""
    return frozenset(op for op in _OPS if hasattr(core, f"{backend}_{op}"))


def corrupt(
    tokens: torch.Tensor,
    keep_prob: torch.Tensor,
    vocab_size: int,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
    noise_table: torch.Tensor | None,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`corrupt` on checked, contiguous arguments; on CPU None where a value is out of range."""
    noisy = torch.empty_like(tokens)
    is_signal = torch.empty_like(tokens, dtype=torch.bool)
    step_value, step_pointer = _step(step)
    args = core.CorruptArgs(
        tokens.data_ptr(),
        tokens.element_size(),
        keep_prob.data_ptr(),
        keep_prob.dim() == 2,
        _address(frozen),
        _address(sample_ids),
        _address(noise_table),
        noisy.data_ptr(),
        is_signal.data_ptr(),
        tokens.shape[0],
        tokens.shape[1],
        vocab_size,
        seed & 0xFFFFFFFFFFFFFFFF,
        step_value,
        step_pointer,
        stream,
    )
    if tokens.is_cuda:
        core.cuda_corrupt(args, *_queue(tokens.device))
    elif not core.cpu_corrupt(args, torch.get_num_threads()):
        return None
    return noisy, is_signal


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _step(step: int | torch.Tensor) -> tuple[int, int]:
    """Value and device address of the step: one is meant, the other 0."""
    if isinstance(step, int):
        return step, 0
    return (0, step.data_ptr()) if step.is_cuda else (int(step), 0)


def _queue(device: torch.device) -> tuple[int, int]:
    return torch.cuda.current_stream(device).cuda_stream, device.index
