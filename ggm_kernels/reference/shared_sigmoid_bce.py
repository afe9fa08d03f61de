"""Reference of `shared_sigmoid_bce`: noise candidates that all rows of `linear_sigmoid_bce` share.

With f = hidden @ rows.T + bias + offset: loss[n] = sum_s weight[s] softplus(f[n, s]), hence
d loss / d f = weight sigmoid(f).
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from ggm_kernels.reference.precision import without_autocast

_CHUNK = 2**22  # logits held at once


@without_autocast
def shared_sigmoid_bce(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Loss [N] in float64, of hidden [N, d] and the candidates' rows of the weight [S, d]."""
    loss = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    for part in _chunks(hidden, rows):
        f = _logits(hidden, rows, bias, offset, weight.dtype, part)
        terms = torch.where(weight == 0, 0.0, weight * softplus(f, threshold=40))
        loss[part] = terms.sum(1, dtype=torch.float64)
    return loss


@without_autocast
def shared_sigmoid_bce_backward(
    row_gradient: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    weight: torch.Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden [N, d], rows [S, d] and bias [S], each None where `needs` says so."""
    dtype = weight.dtype
    grad_hidden, grad_rows = (torch.zeros_like(value, dtype=dtype) for value in (hidden, rows))
    grad_bias = torch.zeros_like(weight)
    for part in _chunks(hidden, rows):
        f = _logits(hidden, rows, bias, offset, dtype, part)
        grad_f = row_gradient[part, None].to(dtype) * (weight * torch.sigmoid(f))
        grad_hidden[part] = grad_f @ rows.to(dtype)
        grad_rows += grad_f.T @ hidden[part].to(dtype)
        grad_bias += grad_f.sum(0)
    found = (grad_hidden, grad_rows, grad_bias)
    return tuple(value if needed else None for value, needed in zip(found, needs, strict=True))  # type: ignore


def _logits(hidden, rows, bias, offset, dtype: torch.dtype, part: slice) -> torch.Tensor:
    f = hidden[part].to(dtype) @ rows.to(dtype).T
    if bias is not None:
        f = f + bias.to(dtype)
    return f if offset is None else f + offset[part, None].to(dtype)


def _chunks(hidden: torch.Tensor, rows: torch.Tensor) -> list[slice]:
    size = max(1, _CHUNK // max(1, rows.shape[0]))
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]
