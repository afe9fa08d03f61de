"""The compiled core behind the backends "cpu" and "cuda": pointers, streams and threads."""

from __future__ import annotations

import math
import mmap
import os
from typing import Any

import numpy as np
import torch  # before the core, so that both share one OpenMP runtime

from ggm_kernels import build_info

# What each op is called in the compiled core.
_OPS = {
    "corrupt": "corrupt",
    "sigmoid_bce": "sigmoid_bce",
    "sigmoid_bce_backward": "sigmoid_bce_backward",
    "linear_sigmoid_bce": "sigmoid_bce",
    "linear_sigmoid_bce_backward": "sigmoid_bce_backward",
}
_LAZY_FROM = 2**22  # bytes; less stays in cache when it is zeroed, and comes from memory used before
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Float in csrc/kernels.h


def _load() -> tuple[Any, str | None]:
    """The compiled core, or why there is none."""
    try:
        from ggm_kernels import _native  # type: ignore[attr-defined]
    except ImportError as error:
        record = build_info.read()
        if record is None or record["native"]["built"]:
            return None, str(error)
        return None, record["native"]["reason"]
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
    return frozenset(op for op, name in _OPS.items() if hasattr(core, f"{backend}_{name}"))


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
    noisy = _empty(tokens, tokens.dtype)
    is_signal = _empty(tokens, torch.bool)
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


def sigmoid_bce(logits, candidates, signal_weight, noise_weight, offset):
    """`sigmoid_bce` on checked arguments; on CPU None where a candidate is out of range."""
    return _loss(logits, None, candidates, signal_weight, noise_weight, None, offset, logits.shape[1])


def linear_sigmoid_bce(hidden, weight, candidates, signal_weight, noise_weight, bias, offset):
    """`linear_sigmoid_bce` on checked arguments; on CPU None where a candidate is out of range."""
    return _loss(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, weight.shape[0])


def sigmoid_bce_backward(
    grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype
) -> torch.Tensor:
    """Gradient of the logits [N, vocab_size]."""
    grad_logits = _zeros((grad.shape[0], vocab_size), dtype, grad.shape[0], grad.device)
    grad, candidates = grad.contiguous(), candidates.contiguous()
    args = _sigmoid_bce_args(
        grad_logits, None, candidates, signal_weight, noise_weight, None, None, vocab_size
    )
    gradients = core.SigmoidBceGradients(
        grad.data_ptr(), candidate_logits.data_ptr(), 0, 0, 0, grad_logits.data_ptr()
    )
    if grad.is_cuda:
        core.cuda_sigmoid_bce_backward(args, gradients, 0, 0, *_queue(grad.device))
    else:
        core.cpu_sigmoid_bce_backward(args, gradients, torch.get_num_threads())
    return grad_logits


def linear_sigmoid_bce_backward(
    grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, needs
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden, weight and bias, each None where `needs` says so."""
    grad, candidates = grad.contiguous(), candidates.contiguous()
    hidden, weight = _rows_contiguous(hidden), _rows_contiguous(weight)
    grad_hidden = hidden.new_empty(hidden.shape) if needs[0] else None
    grad_weight = _zeros(weight.shape, weight.dtype, candidates.numel(), weight.device) if needs[1] else None
    grad_bias = (
        _zeros(weight.shape[:1], weight.dtype, candidates.numel(), weight.device) if needs[2] else None
    )
    args = _sigmoid_bce_args(
        hidden, weight, candidates, signal_weight, noise_weight, None, None, weight.shape[0]
    )
    gradients = core.SigmoidBceGradients(
        grad.data_ptr(),
        candidate_logits.data_ptr(),
        _address(grad_hidden),
        _address(grad_weight),
        _address(grad_bias),
        0,
    )
    if hidden.is_cuda:
        tokens = order = None
        if needs[1] or needs[2]:
            tokens, order = candidates.to(torch.int64).flatten().sort(stable=True)
        core.cuda_sigmoid_bce_backward(
            args, gradients, _address(tokens), _address(order), *_queue(hidden.device)
        )
    else:
        core.cpu_sigmoid_bce_backward(args, gradients, torch.get_num_threads())
    return grad_hidden, grad_weight, grad_bias


def _loss(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size):
    hidden, candidates = _rows_contiguous(hidden), candidates.contiguous()
    weight = None if weight is None else _rows_contiguous(weight)
    bias = None if bias is None else bias.contiguous()
    offset = None if offset is None else offset.to(torch.float32).contiguous()
    loss = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    candidate_logits = hidden.new_empty(candidates.shape, dtype=torch.float32)
    args = _sigmoid_bce_args(
        hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size
    )
    outputs = loss.data_ptr(), candidate_logits.data_ptr()
    if hidden.is_cuda:
        core.cuda_sigmoid_bce(args, *outputs, *_queue(hidden.device))
    elif not core.cpu_sigmoid_bce(args, *outputs, torch.get_num_threads()):
        return None
    return loss, candidate_logits


def _sigmoid_bce_args(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size):
    return core.SigmoidBceArgs(
        _DTYPES[hidden.dtype],
        weight is not None,
        hidden.data_ptr(),
        hidden.stride(0),
        _address(weight),
        0 if weight is None else weight.stride(0),
        _address(bias),
        _address(offset),
        candidates.data_ptr(),
        candidates.element_size(),
        signal_weight.data_ptr(),
        *signal_weight.stride(),
        noise_weight.data_ptr(),
        *noise_weight.stride(),
        *candidates.shape,
        vocab_size,
        hidden.shape[1],
    )


def _rows_contiguous(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def _empty(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised, shaped like a contiguous tensor: beyond cache in the huge pages that numpy asks for."""
    if like.is_cuda or like.numel() * dtype.itemsize < _LAZY_FROM:
        return torch.empty_like(like, dtype=dtype)
    return (
        torch.from_numpy(np.empty(like.numel() * dtype.itemsize, dtype=np.uint8)).view(dtype).view(like.shape)
    )


def _zeros(
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
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _step(step: int | torch.Tensor) -> tuple[int, int]:
    """Value and device address of the step: one is meant, the other 0."""
    if isinstance(step, int):
        return step, 0
    return (0, step.data_ptr()) if step.is_cuda else (int(step), 0)


def _queue(device: torch.device) -> tuple[int, int]:
    return torch.cuda.current_stream(device).cuda_stream, device.index
