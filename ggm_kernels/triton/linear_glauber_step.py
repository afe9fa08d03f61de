"""`linear_glauber_step` in Triton: the logits of some rows at a time, in a buffer.

Few rows: one kernel computes a tile of logits, keeps it and sums it at once, so that the weight is read
once and of the logits the winning groups alone. Many rows, and rows with filters, whose threshold depends
on a row's whole vocabulary: the library computes the product of as many rows as the buffer holds, and
they are resampled as logits are. The winning group's logits are kept, and not computed anew: 1,024
products a row are 1,024 rows of the weight to read, more than all of it for 50 rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.reference.precision import without_autocast
from ggm_kernels.triton.glauber_step import Rows, has_positions
from ggm_kernels.triton.group_sums import real_inverse, store_sums
from ggm_kernels.triton.rows import edited, row_places, row_value, shifts_of

# Most rows for which one kernel does it all; to be measured: where it loses to the library's product.
_FUSED_ROWS = 64
_BUFFER_BYTES = 2**26
_LEAST_ROWS = 64  # in the buffer, so that the weight is not read for a few rows alone
_FUSED_WARPS = 8
_FUSED_TOKENS = 64  # of one tile, which is a slot
_INTERPRETED_TOKENS = 256  # small tiles cost the interpreter as much
# Of one program: rows, and elements of hidden that it handles at once. More of float32 spill registers.
_FUSED_BLOCK_ROWS = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
_FUSED_COLUMNS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}


@without_autocast
def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
) -> None:
    """`glauber_step` on hidden [B, K, d] @ weight [V, d].T + bias, on checked arguments."""
    batch, count, _ = hidden.shape
    size, vocab_size = batch * count, weight.shape[0]
    if size == 0 or not has_positions(tokens, update):
        return
    with torch.cuda.device_of(tokens):
        rows = Rows(tokens, update, count, vocab_size, 0, size)
        if size <= _FUSED_ROWS and not rows.filters and _has_product(hidden):
            _race_product(rows, hidden, weight, bias)
            return
        flat = hidden.reshape(size, -1)
        height = min(size, max(_LEAST_ROWS, _BUFFER_BYTES // (hidden.element_size() * vocab_size)))
        buffer = _buffer(hidden, height, vocab_size)
        for first in range(0, size, height):
            part = flat[first : first + height]
            logits = buffer[: part.shape[0]]
            _product(part, weight, bias, logits)
            rows = Rows(tokens, update, count, vocab_size, first, part.shape[0])
            rows.race(logits, _strides(logits, count))


def _has_product(hidden: torch.Tensor) -> bool:
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    return hidden.device.type != "cpu" or hidden.dtype != torch.bfloat16


def _buffer(hidden: torch.Tensor, rows: int, vocab_size: int) -> torch.Tensor:
    """Room for logits [rows, V], every row aligned for wide loads."""
    width = triton.cdiv(vocab_size, 16) * 16
    return hidden.new_empty(rows, width)[:, :vocab_size]


def _strides(logits: torch.Tensor, count: int) -> tuple[int, int, int]:
    """Of rows [n, V] as logits [sequence, position, token]: row r is sequence * count + position."""
    row, token = logits.stride()
    return count * row, row, token


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(bias, hidden, weight.T, out=out)


def _race_product(rows: Rows, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Race all rows on logits that one kernel computes and sums."""
    most = _FUSED_BLOCK_ROWS[hidden.dtype]
    block_rows = min(most, max(16, triton.next_power_of_2(rows.size)))
    tokens = _FUSED_TOKENS if hidden.device.type != "cpu" else _INTERPRETED_TOKENS
    rows.make_slots(tokens)
    columns = min(_FUSED_COLUMNS[hidden.dtype], max(16, triton.next_power_of_2(hidden.shape[2])))
    logits = _buffer(hidden, rows.size, rows.vocab_size)
    strides = _strides(logits, rows.count)
    _race_product_kernel[(triton.cdiv(rows.size, block_rows) * rows.slots,)](
        *rows.arguments(logits, strides), hidden, *hidden.stride(), weight, *weight.stride(),
        bias, 0 if bias is None else bias.stride(0), rows.sums, rows.slots, **rows.sum_flags,
        HIDDEN_SIZE=hidden.shape[2], ROWS=block_rows, BLOCK=tokens, COLUMNS=columns, num_warps=_FUSED_WARPS,
    )  # fmt: skip
    rows.settle(logits, strides)


@triton.jit(do_not_specialize=["length", "count", "vocab_size", "first_row", "rows", "slots"])
def _race_product_kernel(
    tokens_ptr,
    token_batch_stride,
    token_stride,
    length,
    positions_ptr,
    position_batch_stride,
    position_stride,
    frozen_ptr,
    count,
    vocab_size,
    first_row,
    rows,
    logits_ptr,
    batch_stride,
    row_stride,
    vocab_stride,
    temperature,
    temperature_batch_stride,
    temperature_row_stride,
    softcap,
    shift,
    shift_batch_stride,
    shift_row_stride,
    hidden_ptr,
    hidden_batch_stride,
    hidden_row_stride,
    hidden_stride,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    bias_ptr,
    bias_stride,
    sums_ptr,
    slots,
    WANTS_RAW: tl.constexpr,
    WANTS_ENTROPY: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Programs that read the same weights follow each other.
    row_blocks = tl.cdiv(rows, ROWS)
    local = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(0) // row_blocks
    _, sequence, k, position, live = row_places(
        local,
        first_row,
        rows,
        count,
        length,
        positions_ptr,
        position_batch_stride,
        position_stride,
        frozen_ptr,
    )
    hidden_row_ptr = hidden_ptr + sequence * hidden_batch_stride + k * hidden_row_stride
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    token = slot.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = _logits(
        hidden_row_ptr, live, hidden_stride, weight_ptr, weight_row_stride, weight_stride, bias_ptr,
        bias_stride, token, vocab_size, HIDDEN_SIZE, ROWS, BLOCK, COLUMNS,
    )  # fmt: skip
    row_ptr = logits_ptr + local // count * batch_stride + local % count * row_stride
    tl.store(
        row_ptr[:, None] + token[None, :] * vocab_stride,
        g,
        mask=live[:, None] & (token < vocab_size)[None, :],
    )
    inverse = row_value(
        temperature, temperature_batch_stride, temperature_row_stride, sequence, k, tl.float32
    )
    shifted, by = shifts_of(
        tokens_ptr, token_batch_stride, token_stride, sequence, position, k,
        shift, shift_batch_stride, shift_row_stride,
    )  # fmt: skip
    is_token = (token < vocab_size)[None, :]
    g = tl.where(is_token, g.to(tl.float32), float("-inf"))
    g = edited(g, token[None, :], is_token, softcap, shift, shifted[:, None], by[:, None])
    store_sums(
        g, sums_ptr, rows.to(tl.int64) * slots, local * slots + slot, live, real_inverse(inverse), inverse,
        inverse, False, WANTS_RAW, WANTS_ENTROPY,
    )  # fmt: skip


@triton.jit
def _logits(
    row_ptr,
    live,
    hidden_stride,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    bias_ptr,
    bias_stride,
    token,
    vocab_size,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Logits [ROWS, BLOCK] of tokens, rounded to the weight's dtype; of no account from `vocab_size` on."""
    is_token = token < vocab_size
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for column in range(0, HIDDEN_SIZE, COLUMNS):
        d = column + tl.arange(0, COLUMNS)
        h_at = row_ptr[:, None] + d[None, :] * hidden_stride
        h = tl.load(h_at, mask=live[:, None] & (d < HIDDEN_SIZE)[None, :], other=0.0)
        w_at = weight_ptr + token[None, :] * weight_row_stride + d[:, None] * weight_stride
        w = tl.load(w_at, mask=is_token[None, :] & (d < HIDDEN_SIZE)[:, None], other=0.0)
        total = tl.dot(h, w, total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + token * bias_stride, mask=is_token, other=0.0).to(tl.float32)[None, :]
    return total.to(weight_ptr.dtype.element_ty)
