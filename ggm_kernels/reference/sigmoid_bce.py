"""Reference of `sigmoid_bce` and `linear_sigmoid_bce`, forward and backward.

Per row n with candidates c, signal weight s, noise weight m and logit f:
loss[n] = sum_c s softplus(-f) + m softplus(f), hence d loss / d f = m sigmoid(f) - s sigmoid(-f).
Arithmetic is float32, or float64 for float64 inputs (gradient checks).
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

_CHUNK = 2**22  # elements of a gathered block [rows, C, d] held at once


def sigmoid_bce(
    logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    """Loss [N] from logits [N, V] and candidates [N, C]."""
    return _loss(_candidate_logits(logits, candidates, offset), signal_weight, noise_weight)


def sigmoid_bce_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of `logits` [N, V]; repeated candidates add up."""
    f = _candidate_logits(logits, candidates, offset)
    grad_f = _loss_gradient(grad, f, signal_weight, noise_weight)
    grad_logits = torch.zeros(logits.shape, dtype=f.dtype, device=f.device)
    return grad_logits.scatter_add_(1, candidates.long(), grad_f).to(logits.dtype)


def linear_sigmoid_bce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    """Loss [N] from hidden [N, d], weight [V, d] and candidates [N, C]."""
    loss = torch.empty(hidden.shape[0], dtype=_accumulate(hidden.dtype), device=hidden.device)
    for rows in _chunks(hidden, candidates):
        f = _dot(hidden[rows], weight, candidates[rows], bias, offset if offset is None else offset[rows])
        loss[rows] = _loss(f, signal_weight[rows], noise_weight[rows])
    return loss


def linear_sigmoid_bce_backward(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden, weight and bias, each None where `needs` says so."""
    dtype = _accumulate(hidden.dtype)
    grad_hidden = hidden.new_empty(hidden.shape) if needs[0] else None
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if needs[1] else None
    grad_bias = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device) if needs[2] else None
    for rows in _chunks(hidden, candidates):
        chosen = candidates[rows].long()
        f = _dot(hidden[rows], weight, chosen, bias, offset if offset is None else offset[rows])
        grad_f = _loss_gradient(grad[rows], f, signal_weight[rows], noise_weight[rows])
        if grad_hidden is not None:
            grad_hidden[rows] = torch.einsum("nc,ncd->nd", grad_f, weight[chosen].to(dtype)).to(hidden.dtype)
        if grad_weight is not None:
            outer = grad_f[:, :, None] * hidden[rows].to(dtype)[:, None, :]
            grad_weight.index_add_(0, chosen.flatten(), outer.flatten(0, 1))
        if grad_bias is not None:
            grad_bias.index_add_(0, chosen.flatten(), grad_f.flatten())
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
    )


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _candidate_logits(
    logits: torch.Tensor, candidates: torch.Tensor, offset: torch.Tensor | None
) -> torch.Tensor:
    f = logits.gather(1, candidates.long()).to(_accumulate(logits.dtype))
    return f if offset is None else f + offset.to(f.dtype)[:, None]


def _dot(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    dtype = _accumulate(hidden.dtype)
    chosen = candidates.long()
    f = torch.einsum("nd,ncd->nc", hidden.to(dtype), weight[chosen].to(dtype))
    if bias is not None:
        f = f + bias[chosen].to(dtype)
    return f if offset is None else f + offset.to(dtype)[:, None]


def _loss(f: torch.Tensor, signal_weight: torch.Tensor, noise_weight: torch.Tensor) -> torch.Tensor:
    # A weight of 0 switches its term off even where that term is infinite (f = +-inf).
    signal = torch.where(signal_weight == 0, 0.0, signal_weight * softplus(-f))
    noise = torch.where(noise_weight == 0, 0.0, noise_weight * softplus(f))
    return (signal + noise).sum(1)


def _loss_gradient(
    grad: torch.Tensor, f: torch.Tensor, signal_weight: torch.Tensor, noise_weight: torch.Tensor
) -> torch.Tensor:
    return grad.to(f.dtype)[:, None] * (noise_weight * torch.sigmoid(f) - signal_weight * torch.sigmoid(-f))


def _chunks(hidden: torch.Tensor, candidates: torch.Tensor) -> list[slice]:
    rows = max(1, _CHUNK // max(1, hidden.shape[1] * candidates.shape[1]))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
