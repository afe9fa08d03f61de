"""`linear_cross_entropy` in Triton: kernels between library products of tiles.

A program takes a row of a tile; that of the bias takes tokens, and adds row after row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from ggm_kernels.products import logit_blocks
from ggm_kernels.products.logit_blocks import Scales, Sizes, Tile, device_sizes, problem_of
from ggm_kernels.reference.precision import without_autocast

_TOKENS = 2048  # of a row at a time
_BIAS_TOKENS = 128


@without_autocast
def linear_cross_entropy(
    hidden, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss, all_rows
):
    """`linear_cross_entropy` on checked arguments: loss, log-sum-exp and its two summands."""
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    return logit_blocks.losses(_Between(), problem, scale, z_loss)


@without_autocast
def linear_cross_entropy_sum(
    hidden, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss, all_rows, needs
):
    """The same, and the gradients of the sum of the losses."""
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    outputs, gradients = logit_blocks.losses_and_gradients(_Between(), problem, scale, z_loss, needs)
    return *outputs, *gradients


@without_autocast
def linear_cross_entropy_backward(
    softmax_scale, target_scale, normaliser, hidden, weight, bias, targets, logit_shift, shifted_token,
    softcap, needs,
):  # fmt: skip
    """Gradients of hidden, weight and bias, each None where `needs` says so."""
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    return logit_blocks.gradients(_Between(), problem, normaliser, softmax_scale, target_scale, needs)


class _Between:
    """The kernels between products."""

    sizes: Callable[..., Sizes] = staticmethod(device_sizes)

    def run(self, task: Callable[[int], None], count: int) -> None:
        for index in range(count):
            task(index)

    def negligible(self, softmax_scale: torch.Tensor, target_scale: torch.Tensor) -> float:
        return 0.0  # to know that nothing matters, one would wait for the device

    def sums(self, tile: Tile, top: torch.Tensor, mass: torch.Tensor, target_logit: torch.Tensor) -> None:
        with torch.cuda.device_of(top):
            _sums_kernel[(tile.products.shape[0],)](
                *_arguments(tile), top, mass, target_logit, TOKENS=_TOKENS
            )

    def gradients(self, tile: Tile, scales: Scales, bias: torch.Tensor | None) -> bool:
        products = tile.products
        rows, tokens = products.shape
        with torch.cuda.device_of(products):
            of_rows = scales.top, scales.log_mass, scales.softmax_scale, scales.target_scale
            _gradients_kernel[(rows,)](*_arguments(tile), *of_rows, TOKENS=_TOKENS)
            if bias is not None:
                grid = (triton.cdiv(tokens, _BIAS_TOKENS),)
                _bias_kernel[grid](products, products.stride(0), rows, tokens, bias, TOKENS=_BIAS_TOKENS)
        return True


def _arguments(tile: Tile):
    products, block = tile.products, tile.block
    return (
        products, products.stride(0), products.shape[1], tile.begin, tile.bias, block.softcap, block.targets,
        block.logit_shift, block.shifted_token,
    )  # fmt: skip


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    size = 1.0 - (e + e) / (1.0 + e)  # rounded once: below 1 as long as tanh is
    square = x * x
    near = x * (1.0 + square * (-0.33333334 + square * (0.13333334 - square * 0.05396825)))
    return tl.where(tl.abs(x) < 0.1, near, tl.where(x < 0.0, -size, size))


@triton.jit
def _capped(products_ptr, bias_ptr, column, inside, softcap):
    """Logits before the shift; -inf, or what the softcap makes of it, outside."""
    logits = tl.load(products_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + column, mask=inside, other=0.0)
    if softcap > 0.0:
        logits = softcap * _tanh(logits / softcap)
    return logits


@triton.jit
def _shifts(shift_ptr, shifted_ptr, row, column, begin):
    """What is added to the logits of a row."""
    shifts = tl.zeros_like(column).to(tl.float32)
    if shift_ptr is not None:
        at = tl.load(shifted_ptr + row) - begin
        shifts = tl.where(column == at, tl.load(shift_ptr + row), 0.0)
    return shifts


@triton.jit(do_not_specialize=["tokens", "begin", "softcap"])
def _sums_kernel(
    products_ptr,
    row_stride,
    tokens,
    begin,
    bias_ptr,
    softcap,
    targets_ptr,
    shift_ptr,
    shifted_ptr,
    top_ptr,
    mass_ptr,
    target_logit_ptr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row) - begin
    infinity = float("inf")
    tops = tl.full([TOKENS], -infinity, dtype=tl.float32)
    masses = tl.zeros([TOKENS], dtype=tl.float32)
    start = 0
    while start < tokens:
        column = start + tl.arange(0, TOKENS)
        inside = column < tokens
        logits = _capped(products_ptr + row * row_stride, bias_ptr, column, inside, softcap)
        logits += _shifts(shift_ptr, shifted_ptr, row, column, begin)
        tl.store(target_logit_ptr + row + tl.zeros_like(column), logits, mask=inside & (column == target))
        logits = tl.where(inside, logits, -infinity)
        # A NaN fails the comparison, and the mass is NaN from there on; -inf has no mass.
        higher = logits > tops
        rise = tl.exp(tl.where(higher, tops - logits, 0.0))
        added = tl.where(logits == -infinity, 0.0, tl.exp(tl.where(higher, 0.0, logits - tops)))
        masses = masses * rise + added
        tops = tl.where(higher, logits, tops)
        start += TOKENS
    top = tl.max(tops, axis=0)
    share = tl.where(tops == -infinity, 1.0, tl.exp(tops - top))  # a mass of 0 or NaN stays what it is
    tl.store(top_ptr + row, top)
    tl.store(mass_ptr + row, tl.sum(masses * share, axis=0))


@triton.jit(do_not_specialize=["tokens", "begin", "softcap"])
def _gradients_kernel(
    products_ptr,
    row_stride,
    tokens,
    begin,
    bias_ptr,
    softcap,
    targets_ptr,
    shift_ptr,
    shifted_ptr,
    top_ptr,
    log_mass_ptr,
    softmax_scale_ptr,
    target_scale_ptr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row) - begin
    top, log_mass = tl.load(top_ptr + row), tl.load(log_mass_ptr + row)
    softmax_scale, target_scale = tl.load(softmax_scale_ptr + row), tl.load(target_scale_ptr + row)
    counts = (softmax_scale != 0.0) | (target_scale != 0.0)  # else zero whatever the logits are
    start = 0
    while start < tokens:
        column = start + tl.arange(0, TOKENS)
        inside = column < tokens
        logits = _capped(products_ptr + row * row_stride, bias_ptr, column, inside, softcap)
        shifts = _shifts(shift_ptr, shifted_ptr, row, column, begin)
        gradients = softmax_scale * tl.exp((logits + shifts - top) - log_mass)
        gradients -= tl.where(column == target, target_scale, 0.0)
        if softcap > 0.0:
            share = logits / softcap
            gradients *= 1.0 - share * share
        gradients = tl.where(counts, gradients, 0.0).to(products_ptr.dtype.element_ty)
        tl.store(products_ptr + row * row_stride + column, gradients, mask=inside)
        start += TOKENS


@triton.jit(do_not_specialize=["rows", "tokens"])
def _bias_kernel(gradients_ptr, row_stride, rows, tokens, bias_ptr, TOKENS: tl.constexpr):
    column = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = column < tokens
    total = tl.load(bias_ptr + column, mask=inside, other=0.0)
    row = tl.zeros([], dtype=tl.int64)
    while row < rows:
        total += tl.load(gradients_ptr + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
        row += 1
    tl.store(bias_ptr + column, total, mask=inside)
