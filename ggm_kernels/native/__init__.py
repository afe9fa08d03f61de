"""The backends "cpu" and "cuda": every op in the compiled core."""

from __future__ import annotations

import torch

from ggm_kernels.native import cuda_glauber_step
from ggm_kernels.native import glauber_step as cpu_glauber_step
from ggm_kernels.native.compiled import LOAD_ERROR, core
from ggm_kernels.native.corrupt import corrupt
from ggm_kernels.native.sigmoid_bce import (
    linear_sigmoid_bce,
    linear_sigmoid_bce_backward,
    sigmoid_bce,
    sigmoid_bce_backward,
)

__all__ = [
    "corrupt",
    "glauber_step",
    "linear_glauber_step",
    "linear_sigmoid_bce",
    "linear_sigmoid_bce_backward",
    "sigmoid_bce",
    "sigmoid_bce_backward",
]

# What each op is called in the compiled core.
_OPS = {
    "corrupt": "corrupt",
    "sigmoid_bce": "sigmoid_bce",
    "sigmoid_bce_backward": "sigmoid_bce_backward",
    "linear_sigmoid_bce": "sigmoid_bce",
    "linear_sigmoid_bce_backward": "sigmoid_bce_backward",
    "glauber_step": "glauber_race",
    "linear_glauber_step": "glauber_race",
}


def glauber_step(tokens: torch.Tensor, *rest) -> bool | None:
    """`glauber_step` on checked arguments; on CPU False where a value is out of range."""
    return (cuda_glauber_step if tokens.is_cuda else cpu_glauber_step).glauber_step(tokens, *rest)


def linear_glauber_step(tokens: torch.Tensor, *rest) -> bool | None:
    """`linear_glauber_step` on checked arguments; on CPU False where a value is out of range."""
    return (cuda_glauber_step if tokens.is_cuda else cpu_glauber_step).linear_glauber_step(tokens, *rest)


def why_not(backend: str) -> str | None:
    """Why the backend "cpu" or "cuda" cannot serve, and how to get it; None if it can."""
    if core is None:
        return f"no compiled core: {LOAD_ERROR}"
    if backend == "cpu":
        return None
    if not hasattr(core, "cuda_corrupt"):
        return "built without CUDA: install the CUDA toolkit (nvcc), then pip install again with GGM_CUDA=1"
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "no CUDA device that PyTorch can use: it is a CPU build, install a CUDA build of it"
        return "no CUDA device that PyTorch can use: it takes an NVIDIA GPU and its driver"
    return None


def describe(backend: str) -> str:
    """What the backend runs on."""
    if backend == "cpu":
        return f"C++, instruction set {core.isa()}, {torch.get_num_threads()} threads"
    return f"CUDA C++, {torch.cuda.get_device_name()}"


def ops(backend: str) -> frozenset[str]:
    """The ops that the backend implements."""
    return frozenset(op for op, name in _OPS.items() if hasattr(core, f"{backend}_{name}"))
