"""The backends "cpu", "cuda" and "emulated": every op in the compiled core.

"emulated" is csrc/cuda on the CPU, for tests: tensors of the CPU take the way of those on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ggm_kernels import build_info
from ggm_kernels.native.commit import commit
from ggm_kernels.native.compiled import CPU, CUDA, EMULATED, EMULATED_LOAD_ERROR, LOAD_ERROR, core
from ggm_kernels.native.corrupt import corrupt
from ggm_kernels.native.glauber_step import glauber_step, linear_glauber_step
from ggm_kernels.native.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_sum,
)
from ggm_kernels.native.linear_expected_embedding import (
    linear_expected_embedding,
    linear_expected_embedding_backward,
)
from ggm_kernels.native.shared_sigmoid_bce import shared_sigmoid_bce, shared_sigmoid_bce_backward
from ggm_kernels.native.sigmoid_bce import (
    linear_sigmoid_bce,
    linear_sigmoid_bce_backward,
    sigmoid_bce,
    sigmoid_bce_backward,
)

__all__ = [
    "core",
    "describe",
    "kernel",
    "linear_expected_embedding",
    "linear_expected_embedding_backward",
    "ops",
    "why_not",
]

_KERNELS = {"cpu": CPU, "cuda": CUDA, "emulated": EMULATED}

# Of each op the function that serves it on checked arguments, after the kernels to call.
_CALLS: dict[str, Callable] = {
    "commit": commit,
    "corrupt": corrupt,
    "sigmoid_bce": sigmoid_bce,
    "sigmoid_bce_backward": sigmoid_bce_backward,
    "linear_sigmoid_bce": linear_sigmoid_bce,
    "linear_sigmoid_bce_backward": linear_sigmoid_bce_backward,
    "linear_cross_entropy": linear_cross_entropy,
    "linear_cross_entropy_backward": linear_cross_entropy_backward,
    "linear_cross_entropy_sum": linear_cross_entropy_sum,
    "linear_expected_embedding": linear_expected_embedding,
    "linear_expected_embedding_backward": linear_expected_embedding_backward,
    "shared_sigmoid_bce": shared_sigmoid_bce,
    "shared_sigmoid_bce_backward": shared_sigmoid_bce_backward,
    "glauber_step": glauber_step,
    "linear_glauber_step": linear_glauber_step,
}

# Ops that are products of torch on tiles, and need nothing of the core.
_OF_PRODUCTS = {"linear_expected_embedding", "linear_expected_embedding_backward"}

# What each other op is called in the compiled core.
_OPS = {
    "commit": "commit",
    "corrupt": "corrupt",
    "sigmoid_bce": "sigmoid_bce",
    "sigmoid_bce_backward": "sigmoid_bce_backward",
    "linear_sigmoid_bce": "sigmoid_bce",
    "linear_sigmoid_bce_backward": "sigmoid_bce_backward",
    "linear_cross_entropy": "linear_cross_entropy",
    "linear_cross_entropy_backward": "linear_cross_entropy_backward",
    "linear_cross_entropy_sum": "linear_cross_entropy_backward",
    "shared_sigmoid_bce": "shared_sigmoid_bce",
    "shared_sigmoid_bce_backward": "shared_sigmoid_bce_backward",
    "glauber_step": "glauber_race",
    "linear_glauber_step": "glauber_race",
}


def kernel(backend: str, op: str) -> Callable:
    """Function that serves an op on checked arguments.

    Of csrc/cpu it returns None (a step: False) where a value is out of range, with nothing written.
    """
    return partial(_CALLS[op], _KERNELS[backend])


def why_not(backend: str) -> str | None:
    """Why a backend cannot serve, and how to get it; None if it can."""
    if backend == "emulated":
        return EMULATED_LOAD_ERROR
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
    return _why_too_old(torch.cuda.get_device_capability(), build_info.read())


def _why_too_old(capability: tuple[int, int], info: dict[str, Any] | None) -> str | None:
    """What a device of some compute capability lacks for the machine code that a build made."""
    archs = (info or {}).get("cuda", {}).get("archs", ())
    oldest = min((int(arch.rstrip("af")) for arch in archs), default=0)
    own = 10 * capability[0] + capability[1]
    if own >= oldest:
        return None
    return f"the GPU is sm_{own}, the kernels are for sm_{oldest} and later: build with GGM_CUDA_ARCHS={own}"


def describe(backend: str) -> str:
    """What the backend runs on."""
    if backend == "cpu":
        return f"C++, instruction set {core.isa()}, {torch.get_num_threads()} threads"
    if backend == "emulated":
        return "CUDA C++ on the CPU, for tests"
    return f"CUDA C++, {torch.cuda.get_device_name()}"


def ops(backend: str) -> frozenset[str]:
    """The ops that the backend implements."""
    kernels = _KERNELS[backend]
    prefix = "cuda" if kernels.are_device_code else "cpu"
    of_core = {op for op, name in _OPS.items() if hasattr(kernels.core, f"{prefix}_{name}")}
    return frozenset(of_core | _OF_PRODUCTS)
