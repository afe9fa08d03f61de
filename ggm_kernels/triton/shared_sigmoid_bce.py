"""`shared_sigmoid_bce` in Triton: kernels over blocks of a tile's logits, between products of the library."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ggm_kernels.products import shared_tiles
from ggm_kernels.triton.sigmoid_bce import _candidate_loss, _derivative

_ROWS = 4  # of one program
_COLUMNS = 512  # candidates of one program, or at once


def shared_sigmoid_bce(hidden, rows, bias, offset, weight) -> torch.Tensor:
    """What shared candidates add to the loss of each row, float64 [N]."""
    return shared_tiles.loss(hidden, rows, bias, offset, weight, _KERNELS)


def shared_sigmoid_bce_backward(row_gradient, hidden, rows, bias, offset, weight, needs):
    """Gradients of hidden, rows of the weight and bias, float32, each None where `needs` says so."""
    return shared_tiles.gradients(row_gradient, hidden, rows, bias, offset, weight, needs, _KERNELS)


def _loss(logits, bias, offset, weight, sums) -> None:
    rows, columns = logits.shape
    with torch.cuda.device_of(logits):
        _loss_kernel[(triton.cdiv(rows, _ROWS),)](
            logits, logits.stride(0), bias, offset, weight, sums, rows, columns, ROWS=_ROWS, COLUMNS=_COLUMNS
        )


def _gradient(logits, bias, offset, weight, row_gradient, out) -> None:
    rows, columns = logits.shape
    with torch.cuda.device_of(logits):
        _gradient_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS))](
            logits, logits.stride(0), bias, offset, weight, row_gradient, out, out.stride(0), rows, columns,
            ROWS=_ROWS, COLUMNS=_COLUMNS,
        )  # fmt: skip


_KERNELS = shared_tiles.TileKernels(_loss, _gradient)


@triton.jit
def _logits_at(logits_ptr, row_stride, bias_ptr, offset_ptr, row, column, there):
    f = tl.load(logits_ptr + row[:, None] * row_stride + column[None, :], mask=there, other=0.0)
    if bias_ptr is not None:
        f += tl.load(bias_ptr + column[None, :], mask=there, other=0.0)
    if offset_ptr is not None:
        f += tl.load(offset_ptr + row[:, None], mask=there, other=0.0)
    return f


@triton.jit(do_not_specialize=["rows", "columns"])
def _loss_kernel(
    logits_ptr,
    row_stride,
    bias_ptr,
    offset_ptr,
    weight_ptr,
    sums_ptr,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    total = tl.load(sums_ptr + row, mask=inside, other=0.0)
    start = 0
    while start < columns:
        column = start + tl.arange(0, COLUMNS)
        there = inside[:, None] & (column < columns)[None, :]
        f = _logits_at(logits_ptr, row_stride, bias_ptr, offset_ptr, row, column, there)
        weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0)[None, :]
        total += tl.sum(_candidate_loss(f, 0.0, weight).to(tl.float64), axis=1)
        start += COLUMNS
    tl.store(sums_ptr + row, total, mask=inside)


@triton.jit(do_not_specialize=["rows", "columns"])
def _gradient_kernel(
    logits_ptr,
    row_stride,
    bias_ptr,
    offset_ptr,
    weight_ptr,
    row_gradient_ptr,
    out_ptr,
    out_row_stride,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < columns)[None, :]
    f = _logits_at(logits_ptr, row_stride, bias_ptr, offset_ptr, row, column, there)
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0)[None, :]
    scale = tl.load(row_gradient_ptr + row, mask=row < rows, other=0.0)[:, None]
    gradient = scale * _derivative(f, 0.0, weight)
    out_at = out_ptr + row[:, None] * out_row_stride + column[None, :]
    tl.store(out_at, gradient.to(out_ptr.dtype.element_ty), mask=there)
