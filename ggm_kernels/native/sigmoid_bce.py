"""`sigmoid_bce` and `linear_sigmoid_bce` in the compiled core."""

from __future__ import annotations

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous, zeros
from ggm_kernels.ops.candidates import entries_by_logit
from ggm_kernels.ops.shared_sigmoid_bce import SharedGradients


def sigmoid_bce(kernels: Kernels, logits, candidates, signal_weight, noise_weight, offset):
    """`sigmoid_bce` on checked arguments; of csrc/cpu None where a candidate is out of range."""
    vocab_size = logits.shape[1]
    return _loss(kernels, logits, None, candidates, signal_weight, noise_weight, None, offset, vocab_size)


def linear_sigmoid_bce(
    kernels: Kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset
):
    """`linear_sigmoid_bce` on checked arguments; of csrc/cpu None where a candidate is out of range."""
    vocab_size = weight.shape[0]
    return _loss(kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size)


def sigmoid_bce_backward(
    kernels: Kernels, grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype
) -> torch.Tensor:
    """Gradient of the logits [N, vocab_size]."""
    grad_logits = zeros((grad.shape[0], vocab_size), dtype, grad.shape[0], grad.device)
    grad, candidates = grad.contiguous(), candidates.contiguous()
    args = _sigmoid_bce_args(
        kernels, grad_logits, None, candidates, signal_weight, noise_weight, None, None, vocab_size
    )
    gradients = kernels.core.SigmoidBceGradients(
        grad.data_ptr(), candidate_logits.data_ptr(), 0, 0, 0, grad_logits.data_ptr(), 0, 0, 0, 0
    )
    if kernels.are_device_code:
        entries, order = entries_by_logit(candidates, vocab_size)
        kernels.core.cuda_sigmoid_bce_backward(
            args, gradients, entries.data_ptr(), order.data_ptr(), *kernels.queue(grad.device)
        )
    else:
        kernels.core.cpu_sigmoid_bce_backward(args, gradients, torch.get_num_threads())
    return grad_logits


def linear_sigmoid_bce_backward(
    kernels: Kernels,
    grad,
    candidate_logits,
    hidden,
    weight,
    candidates,
    signal_weight,
    noise_weight,
    needs,
    shared: SharedGradients | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden, weight and bias, each None where `needs` says so; what is shared is added."""
    grad, candidates = grad.contiguous(), candidates.contiguous()
    hidden, weight = rows_contiguous(hidden), rows_contiguous(weight)
    grad_hidden = hidden.new_empty(hidden.shape) if needs[0] else None
    named = candidates.numel() + (0 if shared is None else len(shared.tokens))
    grad_weight = zeros(weight.shape, weight.dtype, named, weight.device) if needs[1] else None
    grad_bias = zeros(weight.shape[:1], weight.dtype, named, weight.device) if needs[2] else None
    places = None
    if shared is not None:
        places = shared.places(candidates) if needs[1] or needs[2] else None
        shared.write(grad_weight, grad_bias)  # the kernel writes the rows of candidates anew
    args = _sigmoid_bce_args(
        kernels, hidden, weight, candidates, signal_weight, noise_weight, None, None, weight.shape[0]
    )
    gradients = kernels.core.SigmoidBceGradients(
        grad.data_ptr(),
        candidate_logits.data_ptr(),
        address(grad_hidden),
        address(grad_weight),
        address(grad_bias),
        0,
        *((0, 0, 0) if shared is None else map(address, (shared.hidden, shared.rows, shared.bias))),
        address(places),
    )
    if kernels.are_device_code:
        tokens = order = None
        if needs[1] or needs[2]:
            tokens, order = candidates.to(torch.int64).flatten().sort(stable=True)
        kernels.core.cuda_sigmoid_bce_backward(
            args, gradients, address(tokens), address(order), *kernels.queue(hidden.device)
        )
    else:
        kernels.core.cpu_sigmoid_bce_backward(args, gradients, torch.get_num_threads())
    return grad_hidden, grad_weight, grad_bias


def _loss(
    kernels: Kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size
):
    hidden, candidates = rows_contiguous(hidden), candidates.contiguous()
    weight = None if weight is None else rows_contiguous(weight)
    bias = None if bias is None else bias.contiguous()
    offset = None if offset is None else offset.to(torch.float32).contiguous()
    loss = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    candidate_logits = hidden.new_empty(candidates.shape, dtype=torch.float32)
    args = _sigmoid_bce_args(
        kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size
    )
    outputs = loss.data_ptr(), candidate_logits.data_ptr()
    if kernels.are_device_code:
        kernels.core.cuda_sigmoid_bce(args, *outputs, *kernels.queue(hidden.device))
    elif not kernels.core.cpu_sigmoid_bce(args, *outputs, torch.get_num_threads()):
        return None
    return loss, candidate_logits


def _sigmoid_bce_args(
    kernels: Kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size
):
    return kernels.core.SigmoidBceArgs(
        DTYPES[hidden.dtype],
        weight is not None,
        hidden.data_ptr(),
        hidden.stride(0),
        address(weight),
        0 if weight is None else weight.stride(0),
        address(bias),
        address(offset),
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
