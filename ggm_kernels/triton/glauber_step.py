"""`glauber_step` in Triton: find the threshold of the filters, race parts of the vocabulary, settle the rows.

Rows are the (sequence, updated position) pairs. A part is a contiguous range of the vocabulary, raced by one
program, so that few rows still fill the device.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ggm_kernels.ops.glauber_update import Update
from ggm_kernels.triton.race import (
    FIELDS,
    present_tokens,
    race_tile,
    row_coordinates,
    settle_kernel,
    store_partials,
)
from ggm_kernels.triton.threshold import load_logits, threshold_kernel

# Logits that a program of _WARPS holds at once, programs for each multiprocessor; to be tuned on a GPU.
_TILE = 2048
_WARPS = 8
_SETTLE_TILE = 1024
_PROGRAMS = 8
_MAX_ROWS = 128  # of one program: more take too many registers
_INTERPRETED_TILE = 2**18  # small ones cost the interpreter as much


def glauber_step(tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> None:
    """Update ``tokens[b, positions[b, k]]`` in place from logits [B, K, V], on checked arguments."""
    batch, count, vocab_size = logits.shape
    if batch * count == 0:
        return
    with torch.cuda.device_of(tokens):
        rows = Rows(tokens, update, count, vocab_size, 0, batch * count)
        rows.race_all(logits, logits.stride())
        rows.settle()


class Rows:
    """Rows first .. first + size - 1 of a step: arguments of its kernels, partials of its parts."""

    def __init__(
        self, tokens: torch.Tensor, update: Update, count: int, vocab_size: int, first: int, size: int
    ) -> None:
        self.tokens, self.update = tokens, update
        self.count, self.vocab_size, self.first, self.size = count, vocab_size, first, size
        assert not isinstance(update.temperature, torch.Tensor)  # refused beforehand
        self.greedy = update.temperature == 0
        self.inverse_temperature = inverse_temperature(update.temperature)
        self.top: torch.Tensor | None = None
        self.cut: torch.Tensor | None = None
        self.present = self._empty(size) if update.noise_rate is not None else None

    @property
    def coordinates(self) -> tuple:
        """The leading arguments of the kernels that race and settle rows."""
        update = self.update
        positions = update.positions
        return (
            self.tokens, *self.tokens.stride(), self.tokens.shape[1], positions,
            *(positions.stride() if positions.dim() == 2 else (0, *positions.stride())),
            update.sample_ids, self.count, self.vocab_size, self.first, self.size, update.seed, update.step,
        )  # fmt: skip

    @property
    def race_flags(self) -> dict:
        """What a race is told at compile time, but for its blocks."""
        return {
            "STEP_IS_POINTER": isinstance(self.update.step, torch.Tensor),
            "GREEDY": self.greedy,
            "WANTS_RAW": self.update.normalize or self.update.log_sum_exp is not None,
            "WANTS_LAW": self.update.log_prob is not None and not self.greedy,
        }

    def make_slots(self, slots: int) -> None:
        """Make room for the partials of `slots` parts."""
        self.slots = slots
        self.partials = self._empty(FIELDS, self.size, slots)

    def race_all(self, logits: torch.Tensor, strides: tuple[int, ...]) -> None:
        """Filter and race logits of the whole vocabulary; `strides` of sequence, position, token."""
        if filters(self.update, self.vocab_size):
            self._find_threshold(logits, strides)
        parts = part_count(self.size, self.vocab_size, self.tokens.device)
        self.make_slots(parts)
        self.race(logits, strides, 0, self.vocab_size, 0, parts)

    def race(
        self,
        logits: torch.Tensor,
        strides: tuple[int, ...],
        first_token: int,
        end_token: int,
        slot: int,
        parts: int,
    ) -> None:
        """Race the tokens first_token .. end_token - 1, that `logits` are of, into slots from `slot` on."""
        rows, block = tile_shape(self.size, end_token - first_token, self.tokens.device, _TILE)
        blocks_per_part = triton.cdiv(triton.cdiv(end_token - first_token, block), parts)
        _race_kernel[(triton.cdiv(self.size, rows) * parts,)](
            *self.coordinates, logits, *strides, first_token, end_token, self.partials, self.slots, slot,
            parts, blocks_per_part * block, self.present, self.top, self.cut, self.inverse_temperature,
            **self.race_flags, ROWS=rows, BLOCK=block, num_warps=_WARPS,
        )  # fmt: skip

    def settle(self) -> None:
        """Write what follows from the partials."""
        update, rate = self.update, self.update.noise_rate
        rate_strides = (0, 0) if rate is None else (*rate.stride(), 0)[:2]
        slots = triton.next_power_of_2(self.slots)
        rows, _ = tile_shape(self.size, slots, self.tokens.device, _SETTLE_TILE)
        settle_kernel[(triton.cdiv(self.size, rows),)](
            *self.coordinates, self.partials, self.slots, self.present, update.frozen, rate, *rate_strides,
            update.noise_log_probs, -math.log(self.vocab_size), update.log_sum_exp, update.log_prob,
            update.keep_prob, self.inverse_temperature,
            STEP_IS_POINTER=isinstance(update.step, torch.Tensor), GREEDY=self.greedy,
            NORMALIZE=update.normalize, ROWS=rows, SLOTS=slots,
        )  # fmt: skip

    def _find_threshold(self, logits: torch.Tensor, strides: tuple[int, ...]) -> None:
        update = self.update
        self.top, self.cut = self._empty(self.size), self._empty(self.size)
        rows, block = tile_shape(self.size, self.vocab_size, self.tokens.device, _TILE)
        top_k, top_p = update.top_k or 0, update.top_p or 1.0
        assert not isinstance(top_p, torch.Tensor)  # refused beforehand
        threshold_kernel[(triton.cdiv(self.size, rows),)](
            logits, *strides, self.count, self.size, self.vocab_size,
            top_k, round(top_p * 2**53),
            math.log(update.min_p) if update.min_p else -math.inf,
            self.top, self.cut, self.inverse_temperature,
            HAS_TOP_K=0 < top_k < self.vocab_size, HAS_TOP_P=top_p < 1,
            ROWS=rows, BLOCK=block, num_warps=_WARPS,
        )  # fmt: skip

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.tokens.device)


def filters(update: Update, vocab_size: int) -> bool:
    """Whether top-k, top-p or min-p leave tokens out, which takes the largest logit before the race."""
    if update.temperature == 0:
        return False
    return bool(
        (update.top_k is not None and update.top_k < vocab_size)
        or (update.top_p is not None and update.top_p < 1)
        or bool(update.min_p)
    )


def inverse_temperature(temperature: float) -> float:
    """1 / temperature as a finite normal float32; 1 for temperature 0, where any will do."""
    return min(max(1 / temperature, 2.0**-126), 3e38) if temperature > 0 else 1.0


def tile_shape(rows: int, columns: int, device: torch.device, size: int) -> tuple[int, int]:
    """Rows and columns (at least 4) that a program takes, powers of two: few rows where columns are many."""
    max_rows = _MAX_ROWS
    if device.type == "cpu":
        size = max_rows = _INTERPRETED_TILE
    columns = min(size, max(4, triton.next_power_of_2(columns)))
    return min(size // columns, max_rows, triton.next_power_of_2(rows)), columns


def program_count(device: torch.device) -> int:
    """How many programs fill the device."""
    if device.type == "cpu":
        return 1
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def part_count(rows: int, columns: int, device: torch.device) -> int:
    """In how many parts to race the columns: 1 where the rows fill the device, and none without a tile."""
    rows_per_program, block = tile_shape(rows, columns, device, _TILE)
    blocks = triton.cdiv(columns, block)
    parts = max(1, program_count(device) // triton.cdiv(rows, rows_per_program))
    return triton.cdiv(blocks, triton.cdiv(blocks, parts))


# Not in the list: what the alignment of loads depends on.
@triton.jit(
    do_not_specialize=[
        "length", "count", "vocab_size", "first_row", "rows", "seed", "step", "slots", "slot", "parts",
    ]
)  # fmt: skip
def _race_kernel(
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
    logits_ptr,
    batch_stride,
    row_stride,
    vocab_stride,
    first_token,
    end_token,
    partials_ptr,
    slots,
    slot,
    parts,
    part_size,
    present_ptr,
    top_ptr,
    cut_ptr,
    inverse_temperature,
    STEP_IS_POINTER: tl.constexpr,
    GREEDY: tl.constexpr,
    WANTS_RAW: tl.constexpr,
    WANTS_LAW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    local = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(0) % parts
    inside = local < rows
    row = first_row + local
    step_value = tl.load(step) if STEP_IS_POINTER else step
    sequence, position, sample_id = row_coordinates(
        row, inside, count, positions_ptr, position_batch_stride, position_stride, sample_ids_ptr
    )
    # The first column of the logits is that of token first_token, their first row that of first_row.
    row_ptr = logits_ptr + local // count * batch_stride + local % count * row_stride
    start = part * part_size
    width = end_token - first_token
    end = tl.minimum(start + part_size, width)

    if present_ptr is not None:
        _, token, legal = present_tokens(
            tokens_ptr, token_batch_stride, token_stride, length, vocab_size, sequence, position, inside
        )
        column = token - first_token
        here = legal & (column >= start) & (column < end)
        present = tl.load(row_ptr + column * vocab_stride, mask=here, other=0.0).to(tl.float32)
        tl.store(present_ptr + local, present, mask=here)

    FILTERED: tl.constexpr = top_ptr is not None
    if FILTERED:
        top = tl.load(top_ptr + local, mask=inside, other=0.0)
        cut = tl.load(cut_ptr + local, mask=inside, other=0.0)
    else:
        top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
        cut = top
    best = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    winner = tl.zeros([ROWS], dtype=tl.int32)
    has_nan = tl.zeros([ROWS, BLOCK], dtype=tl.int1)
    raw_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    law_sum = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    while start < end:
        g = load_logits(row_ptr, vocab_stride, start, end, inside, BLOCK)
        top, best, winner, has_nan, raw_sum, law_sum = race_tile(
            g, first_token + start, top, best, winner, has_nan, raw_sum, law_sum, cut,
            seed, step_value, sample_id, position, inverse_temperature,
            GREEDY, FILTERED, WANTS_RAW, WANTS_LAW, BLOCK,
        )  # fmt: skip
        start += BLOCK
    at = local * slots + slot + part
    store_partials(
        partials_ptr, rows.to(tl.int64) * slots, at, inside, top, best, winner, has_nan, raw_sum, law_sum,
        WANTS_RAW, WANTS_LAW,
    )  # fmt: skip
