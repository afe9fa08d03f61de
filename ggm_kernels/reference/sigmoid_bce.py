"""Reference of `sigmoid_bce` and `linear_sigmoid_bce`, forward and backward.

Per row n with candidates c, signal weight s, noise weight m and logit f:
loss[n] = sum_c s softplus(-f) + m softplus(f), hence d loss / d f = m sigmoid(f) - s sigmoid(-f).
Arithmetic is float32, or float64 for float64 inputs (gradient checks).
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from ggm_kernels.arguments.sigmoid_bce import SharedGradients
from ggm_kernels.reference.precision import without_autocast

_CHUNK = 2**22  # elements of a gathered block [rows, C, d] held at once


def sigmoid_bce(
    logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    offset: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [N] and candidate logits [N, C] from logits [N, V] and candidates [N, C]."""
    f = logits.gather(1, candidates.long()).to(_accumulate(logits.dtype))
    if offset is not None:
        f = f + offset.to(f.dtype)[:, None]
    return _loss(f, signal_weight, noise_weight), f


def sigmoid_bce_backward(
    grad: torch.Tensor,
    candidate_logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    vocab_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Gradient of the logits [N, V]; repeated candidates add up."""
    grad_f = candidate_gradient(grad, candidate_logits, signal_weight, noise_weight)
    grad_logits = grad_f.new_zeros(grad_f.shape[0], vocab_size)
    return grad_logits.scatter_add_(1, candidates.long(), grad_f).to(dtype)


@without_autocast
def linear_sigmoid_bce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [N] and candidate logits [N, C] from hidden [N, d], weight [V, d] and candidates [N, C]."""
    dtype = _accumulate(hidden.dtype)
    f = torch.empty(candidates.shape, dtype=dtype, device=hidden.device)
    for rows in _chunks(hidden, candidates):
        chosen = weight[candidates[rows].long()]
        f[rows] = torch.einsum("nd,ncd->nc", hidden[rows].to(dtype), chosen.to(dtype))
    if bias is not None:
        f += bias[candidates.long()].to(dtype)
    if offset is not None:
        f += offset.to(dtype)[:, None]
    return _loss(f, signal_weight, noise_weight), f


@without_autocast
def linear_sigmoid_bce_backward(
    grad: torch.Tensor,
    candidate_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    needs: tuple[bool, bool, bool],
    shared: SharedGradients | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden, weight and bias, each None where `needs` says so; what is shared is added."""
    grad_f = candidate_gradient(grad, candidate_logits, signal_weight, noise_weight)
    grad_hidden = hidden.new_empty(hidden.shape) if needs[0] else None
    grad_weight = grad_f.new_zeros(weight.shape) if needs[1] else None
    grad_bias = grad_f.new_zeros(weight.shape[0]) if needs[2] else None
    if shared is not None:
        shared.write(grad_weight, grad_bias)
    for rows in _chunks(hidden, candidates):
        chosen = candidates[rows].long()
        if grad_hidden is not None:
            total = torch.einsum("nc,ncd->nd", grad_f[rows], weight[chosen].to(grad_f.dtype))
            if shared is not None and shared.hidden is not None:
                total += shared.hidden[rows]
            grad_hidden[rows] = total.to(hidden.dtype)
        if grad_weight is not None:
            outer = grad_f[rows][:, :, None] * hidden[rows].to(grad_f.dtype)[:, None, :]
            grad_weight.index_add_(0, chosen.flatten(), outer.flatten(0, 1))
    if grad_bias is not None:
        grad_bias.index_add_(0, candidates.long().flatten(), grad_f.flatten())
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
    )


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _loss(f: torch.Tensor, signal_weight: torch.Tensor, noise_weight: torch.Tensor) -> torch.Tensor:
    # A weight of 0 switches its term off even where that term is infinite (f = +-inf).
    # Beyond 40 softplus(f) is f in float64 too.
    signal = torch.where(signal_weight == 0, 0.0, signal_weight * softplus(-f, threshold=40))
    noise = torch.where(noise_weight == 0, 0.0, noise_weight * softplus(f, threshold=40))
    return (signal + noise).sum(1)


def candidate_gradient(
    grad: torch.Tensor, f: torch.Tensor, signal_weight: torch.Tensor, noise_weight: torch.Tensor
) -> torch.Tensor:
    """Gradient of the candidate logits f [N, C], given that of the loss [N]."""
    return grad.to(f.dtype)[:, None] * (noise_weight * torch.sigmoid(f) - signal_weight * torch.sigmoid(-f))


def _chunks(hidden: torch.Tensor, candidates: torch.Tensor) -> list[slice]:
    rows = max(1, _CHUNK // max(1, hidden.shape[1] * candidates.shape[1]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
