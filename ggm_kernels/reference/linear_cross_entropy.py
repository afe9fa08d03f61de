"""Reference of `linear_cross_entropy`, forward and backward.

Per row n with logits z, target t and scale s (its weight, 0 where it is ignored):
loss[n] = s (logsumexp(z) - z[t] + z_loss logsumexp(z)**2), hence
d loss / d z = s (1 + 2 z_loss logsumexp(z)) softmax(z) - s [is t].
A block of rows at a time, in float32, or float64 for float64 inputs (gradient checks).
"""

from __future__ import annotations

import math

import torch

from ggm_kernels.reference.precision import without_autocast

_CHUNK = 2**22  # logits held at once


@without_autocast
def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    logit_shift: torch.Tensor | None,
    shifted_token: torch.Tensor | None,
    softcap: float,
    z_loss: float,
    all_rows: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], log-sum-exp [N], and its two summands [2, N]: the largest logit, and the rest."""
    target_logit, top, rest = (torch.zeros_like(scale) for _ in range(3))
    for rows in _chunks(hidden, weight):
        read = torch.ones_like(scale[rows], dtype=torch.bool) if all_rows else scale[rows] != 0
        logits, _ = _logits(hidden, weight, bias, logit_shift, shifted_token, softcap, rows, read)
        largest = logits.amax(1)
        top[rows] = torch.where(largest == -math.inf, 0.0, largest)
        rest[rows] = (logits - top[rows, None]).logsumexp(1)
        token = torch.where(scale[rows] == 0, 0, targets[rows].long())
        target_logit[rows] = logits.gather(1, token[:, None])[:, 0]
    log_sum_exp = torch.where(top == math.inf, top, top + rest)
    loss = (top - target_logit) + rest
    if z_loss > 0:
        loss = loss + z_loss * log_sum_exp.square()
    return torch.where(scale == 0, 0.0, scale * loss), log_sum_exp, torch.stack([top, rest])


@without_autocast
def linear_cross_entropy_backward(
    softmax_scale: torch.Tensor,
    target_scale: torch.Tensor,
    normaliser: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    logit_shift: torch.Tensor | None,
    shifted_token: torch.Tensor | None,
    softcap: float,
    needs: tuple[bool, bool, bool],
    held: torch.dtype | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden, weight and bias, each None where `needs` says so.

    That of logits z is ``softmax_scale * softmax(z) - target_scale * [is target]``. `held` is the dtype that
    gradients are rounded to, if not that of `hidden`.
    """
    dtype = softmax_scale.dtype
    grad_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=hidden.device) if needs[1] else None
    grad_bias = torch.zeros(weight.shape[:1], dtype=dtype, device=hidden.device) if needs[2] else None
    for rows in _chunks(hidden, weight):
        counts = (softmax_scale[rows] != 0) | (target_scale[rows] != 0)
        logits, slope = _logits(hidden, weight, bias, logit_shift, shifted_token, softcap, rows, counts)
        grad = (logits - normaliser[0, rows, None] - normaliser[1, rows, None]).exp()
        grad *= softmax_scale[rows, None]
        token = torch.where(target_scale[rows] == 0, 0, targets[rows].long())
        grad.scatter_add_(1, token[:, None], -target_scale[rows, None])
        grad = torch.where(counts[:, None], grad * slope, 0.0)
        grad_hidden[rows] = grad @ weight.to(dtype)
        if grad_weight is not None:
            grad_weight += grad.T @ torch.where(counts[:, None], hidden[rows].to(dtype), 0.0)
        if grad_bias is not None:
            grad_bias += grad.sum(0)
    held = held or hidden.dtype
    return (
        grad_hidden.to(held) if needs[0] else None,
        None if grad_weight is None else grad_weight.to(held),
        None if grad_bias is None else grad_bias.to(held),
    )


def linear_cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    logit_shift: torch.Tensor | None,
    shifted_token: torch.Tensor | None,
    softcap: float,
    z_loss: float,
    all_rows: bool,
    needs: tuple[bool, bool, bool],
):
    """As `linear_cross_entropy`, then the gradients of the sum of the losses, each None if not needed."""
    rows = (targets, scale, logit_shift, shifted_token, softcap, z_loss, all_rows)
    loss, log_sum_exp, normaliser = linear_cross_entropy(hidden, weight, bias, *rows)
    softmax_scale = scale
    if z_loss > 0:
        softmax_scale = torch.where(scale == 0, 0.0, scale * (1 + 2 * z_loss * log_sum_exp))
    gradients = linear_cross_entropy_backward(
        softmax_scale, scale, normaliser, hidden, weight, bias, targets, logit_shift, shifted_token, softcap,
        needs, torch.float32 if hidden.dtype == torch.float16 else None,
    )  # fmt: skip
    return loss, log_sum_exp, normaliser, *gradients


def _logits(hidden, weight, bias, logit_shift, shifted_token, softcap, rows, read):
    """Logits of some rows, and their slopes by what the softcap was given. Rows not `read` do not count."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden[rows].to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    slope = torch.ones((), dtype=dtype, device=hidden.device)
    if softcap > 0:
        tanh = torch.tanh(logits / softcap)
        logits, slope = softcap * tanh, 1 - tanh.square()
    if logit_shift is not None and shifted_token is not None:
        token = torch.where(read, shifted_token[rows].long(), 0)
        logits = logits.scatter_add(1, token[:, None], logit_shift[rows, None])
    return logits, slope


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    rows = max(1, _CHUNK // weight.shape[0])
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
