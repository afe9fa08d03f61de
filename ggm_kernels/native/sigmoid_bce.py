"""`sigmoid_bce` and `linear_sigmoid_bce` in the compiled core."""

from __future__ import annotations

import torch

from ggm_kernels.arguments.sigmoid_bce import SharedGradients, entries_by_logit
from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous, zeros

_NO_GRADIENTS = dict.fromkeys(
    ("hidden", "weight", "bias", "shared_hidden", "shared_weight", "shared_bias", "places"), 0
)


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
        **_NO_GRADIENTS
        | {
            "loss": grad.data_ptr(),
            "candidate_logits": candidate_logits.data_ptr(),
            "logits": grad_logits.data_ptr(),
        }
    )
    if kernels.are_device_code:
        entries, order = entries_by_logit(candidates, vocab_size)
        kernels.core.cuda_sigmoid_bce_backward(
            args,
            gradients,
            tokens=entries.data_ptr(),
            order=order.data_ptr(),
            **kernels.queue(grad.device),
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
        loss=grad.data_ptr(),
        candidate_logits=candidate_logits.data_ptr(),
        hidden=address(grad_hidden),
        weight=address(grad_weight),
        bias=address(grad_bias),
        logits=0,
        shared_hidden=0 if shared is None else address(shared.hidden),
        shared_weight=0 if shared is None else address(shared.rows),
        shared_bias=0 if shared is None else address(shared.bias),
        places=address(places),
    )
    if kernels.are_device_code:
        tokens = order = None
        if needs[1] or needs[2]:
            tokens, order = candidates.to(torch.int64).flatten().sort(stable=True)
        kernels.core.cuda_sigmoid_bce_backward(
            args, gradients, tokens=address(tokens), order=address(order), **kernels.queue(hidden.device)
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
    outputs = {"loss": loss.data_ptr(), "candidate_logits": candidate_logits.data_ptr()}
    if kernels.are_device_code:
        kernels.core.cuda_sigmoid_bce(args, **outputs, **kernels.queue(hidden.device))
    elif not kernels.core.cpu_sigmoid_bce(args, **outputs, threads=torch.get_num_threads()):
        return None
    return loss, candidate_logits


def _sigmoid_bce_args(
    kernels: Kernels, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, vocab_size
):
    return kernels.core.SigmoidBceArgs(
        dtype=DTYPES[hidden.dtype],
        linear=weight is not None,
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=address(weight),
        weight_stride=0 if weight is None else weight.stride(0),
        bias=address(bias),
        offset=address(offset),
        candidates=candidates.data_ptr(),
        candidate_bytes=candidates.element_size(),
        signal_weight=signal_weight.data_ptr(),
        signal_row_stride=signal_weight.stride(0),
        signal_stride=signal_weight.stride(1),
        noise_weight=noise_weight.data_ptr(),
        noise_row_stride=noise_weight.stride(0),
        noise_stride=noise_weight.stride(1),
        rows=candidates.shape[0],
        count=candidates.shape[1],
        vocab_size=vocab_size,
        hidden_size=hidden.shape[1],
    )
