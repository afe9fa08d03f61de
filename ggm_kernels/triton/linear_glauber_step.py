"""`linear_glauber_step` in Triton: the race on logits that never exist as a whole.

Few rows: one kernel computes a tile of logits and races it at once, so the weight is read once. Many rows:
the library computes the product into a small buffer, tile by tile, and the tiles are raced. With filters,
whose threshold depends on a row's whole vocabulary: a few whole rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ggm_kernels.ops.glauber_update import Update
from ggm_kernels.reference.precision import without_autocast
from ggm_kernels.triton.glauber_step import Rows, filters, part_count, program_count
from ggm_kernels.triton.race import present_tokens, race_tile, row_coordinates, store_partials

# Most rows for which one kernel does it all; to be measured: where it loses to the library's product.
_FUSED_ROWS = 64
_BUFFER_BYTES = 2**26
_BUFFER_ROWS = 4096  # so that a tile of the buffer is wide enough for the library
_FUSED_WARPS = 8
_FUSED_TOKENS = 64  # of one tile
_INTERPRETED_TOKENS = 1024  # small tiles cost the interpreter as much
_FUSED_COLUMNS = 64  # elements of hidden handled at once
_FUSED_BLOCK_ROWS = {torch.float32: 32}  # of one program, else 64: more spill registers


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
    if size == 0:
        return
    filtered = filters(update, vocab_size)
    with torch.cuda.device_of(tokens):
        if size <= _FUSED_ROWS and not filtered and _has_product(hidden):
            rows = Rows(tokens, update, count, vocab_size, 0, size)
            _race_product(rows, hidden, weight, bias)
            rows.settle()
            return
        flat = hidden.reshape(size, -1)
        height = _buffer_rows(size, vocab_size if filtered else 1, hidden.element_size())
        for first in range(0, size, height):
            part = flat[first : first + height]
            rows = Rows(tokens, update, count, vocab_size, first, part.shape[0])
            _race_tiles(rows, part, weight, bias, filtered)
            rows.settle()


def _has_product(hidden: torch.Tensor) -> bool:
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    return hidden.device.type != "cpu" or hidden.dtype != torch.bfloat16


def _buffer_rows(size: int, columns: int, element_size: int) -> int:
    """Rows to take at a time, where each needs at least `columns` logits at once."""
    return max(1, min(size, _BUFFER_ROWS, _BUFFER_BYTES // (element_size * columns)))


def _race_tiles(rows: Rows, hidden: torch.Tensor, weight: torch.Tensor, bias, filtered: bool) -> None:
    """Race rows of hidden [n, d], tile by tile of the vocabulary; as one tile with filters."""
    vocab_size = rows.vocab_size
    fitting = _BUFFER_BYTES // (hidden.element_size() * rows.size)
    # A tile begins at a block of Philox words, and its rows are aligned.
    width = vocab_size if filtered or vocab_size <= fitting else max(64, fitting // 64 * 64)
    buffer = hidden.new_empty(rows.size, triton.cdiv(width, 8) * 8)
    # Row r of the buffer as logits [sequence, position]: r = sequence * count + position.
    strides = (rows.count * buffer.stride(0), *buffer.stride())
    if filtered:
        _product(hidden, weight, bias, buffer[:, :width])
        rows.race_all(buffer, strides)
        return
    parts = part_count(rows.size, width, hidden.device)
    rows.make_slots(triton.cdiv(vocab_size, width) * parts)
    for slot, (first, end) in enumerate(_ranges(vocab_size, width)):
        tile = slice(first, end)
        _product(hidden, weight[tile], None if bias is None else bias[tile], buffer[:, : end - first])
        rows.race(buffer, strides, first, end, slot * parts, parts)


def _ranges(size: int, width: int) -> Iterator[tuple[int, int]]:
    for first in range(0, size, width):
        yield first, min(first + width, size)


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(bias, hidden, weight.T, out=out)


def _race_product(rows: Rows, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Race all rows on logits that one kernel computes."""
    most = _FUSED_BLOCK_ROWS.get(hidden.dtype, 64)
    block_rows = min(most, max(16, triton.next_power_of_2(rows.size)))
    row_blocks = triton.cdiv(rows.size, block_rows)
    tokens = _FUSED_TOKENS if hidden.device.type != "cpu" else _INTERPRETED_TOKENS
    tiles = triton.cdiv(rows.vocab_size, tokens)
    tiles_per_part = triton.cdiv(tiles, max(1, program_count(hidden.device) // row_blocks))
    parts = triton.cdiv(tiles, tiles_per_part)
    rows.make_slots(parts)
    columns = min(_FUSED_COLUMNS, max(16, triton.next_power_of_2(hidden.shape[2])))
    _race_product_kernel[(row_blocks * parts,)](
        *rows.coordinates, hidden, *hidden.stride(), weight, *weight.stride(),
        bias, 0 if bias is None else bias.stride(0), rows.partials, parts, tiles_per_part * tokens,
        rows.present, rows.inverse_temperature, **rows.race_flags,
        HIDDEN_SIZE=hidden.shape[2], ROWS=block_rows, BLOCK=tokens, COLUMNS=columns, num_warps=_FUSED_WARPS,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "length",
        "count",
        "vocab_size",
        "first_row",
        "rows",
        "seed",
        "step",
        "parts",
        "part_size",
    ]
)
def _race_product_kernel(
    tokens_ptr,
    token_batch_stride,
    token_stride,
    length,
    positions_ptr,
    position_batch_stride,
    position_stride,
    sample_ids_ptr,
    count,
    vocab_size,
    first_row,
    rows,
    seed,
    step,
    hidden_ptr,
    hidden_batch_stride,
    hidden_row_stride,
    hidden_stride,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    bias_ptr,
    bias_stride,
    partials_ptr,
    parts,
    part_size,
    present_ptr,
    inverse_temperature,
    STEP_IS_POINTER: tl.constexpr,
    GREEDY: tl.constexpr,
    WANTS_RAW: tl.constexpr,
    WANTS_LAW: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Programs that read the same weights follow each other.
    row_blocks = tl.cdiv(rows, ROWS)
    local = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(0) // row_blocks
    inside = local < rows
    row = first_row + local
    step_value = tl.load(step) if STEP_IS_POINTER else step
    sequence, position, sample_id = row_coordinates(
        row, inside, count, positions_ptr, position_batch_stride, position_stride, sample_ids_ptr
    )
    _, token, legal = present_tokens(
        tokens_ptr, token_batch_stride, token_stride, length, vocab_size, sequence, position, inside
    )
    row_ptr = hidden_ptr + sequence * hidden_batch_stride + row % count * hidden_row_stride

    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    best = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    winner = tl.zeros([ROWS], dtype=tl.int32)
    has_nan = tl.zeros([ROWS, BLOCK], dtype=tl.int1)
    raw_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    law_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    start = part * part_size
    end = tl.minimum(start + part_size, vocab_size)
    while start < end:
        g = _logits(
            row_ptr, inside, hidden_stride, weight_ptr, weight_row_stride, weight_stride, bias_ptr,
            bias_stride, start, end, HIDDEN_SIZE, ROWS, BLOCK, COLUMNS,
        )  # fmt: skip
        if present_ptr is not None:
            is_present = (token - start)[:, None] == tl.arange(0, BLOCK)[None, :]
            here = legal & (token >= start) & (token < end)
            present = tl.sum(tl.where(is_present, g, 0.0), axis=1)
            tl.store(present_ptr + local, present, mask=here)
        top, best, winner, has_nan, raw_sum, law_sum = race_tile(
            g, start, top, best, winner, has_nan, raw_sum, law_sum, top,
            seed, step_value, sample_id, position, inverse_temperature,
            GREEDY, False, WANTS_RAW, WANTS_LAW, BLOCK,
        )  # fmt: skip
        start += BLOCK
    at = local * parts + part
    store_partials(
        partials_ptr, rows.to(tl.int64) * parts, at, inside, top, best, winner, has_nan, raw_sum, law_sum,
        WANTS_RAW, WANTS_LAW,
    )  # fmt: skip


@triton.jit
def _logits(
    row_ptr,
    inside,
    hidden_stride,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    bias_ptr,
    bias_stride,
    start,
    end,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Logits [ROWS, BLOCK] of tokens from `start` on, rounded to the weight's dtype; -inf from `end` on."""
    token = start.to(tl.int64) + tl.arange(0, BLOCK)
    is_token = token < end
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for column in range(0, HIDDEN_SIZE, COLUMNS):
        d = column + tl.arange(0, COLUMNS)
        h_at = row_ptr[:, None] + d[None, :] * hidden_stride
        h = tl.load(h_at, mask=inside[:, None] & (d < HIDDEN_SIZE)[None, :], other=0.0)
        w_at = weight_ptr + token[None, :] * weight_row_stride + d[:, None] * weight_stride
        w = tl.load(w_at, mask=is_token[None, :] & (d < HIDDEN_SIZE)[:, None], other=0.0)
        total = tl.dot(h, w, total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + token * bias_stride, mask=is_token, other=0.0).to(tl.float32)[None, :]
    rounded = total.to(weight_ptr.dtype.element_ty).to(tl.float32)
    return tl.where(is_token[None, :], rounded, float("-inf"))
