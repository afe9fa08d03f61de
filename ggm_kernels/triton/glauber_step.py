"""`glauber_step` in Triton: find the threshold of the filters, sum groups of the vocabulary, settle the rows.

Rows are the (sequence, updated position) pairs. The sums read every logit once and take one exponential
of it; random words and their logarithms are for groups, and for the RACE_GROUP tokens of the one that
wins.
"""

from __future__ import annotations

import math

import torch
import triton

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.triton.group_sums import FIELDS, sums_kernel
from ggm_kernels.triton.settle import settle_kernel
from ggm_kernels.triton.step_arguments import Filters, by_row, by_sequence, inverse_temperature
from ggm_kernels.triton.threshold import threshold_kernel

# Logits that a program of _WARPS holds at once; to be tuned on a GPU.
_TILE = 4096
_WARPS = 8
_SETTLE_TILE = 2048
_THRESHOLD_TILE = 2048
_MAX_ROWS = 128  # of one program: more take too many registers
_INTERPRETED_TILE = 2**18  # small ones cost the interpreter as much


def glauber_step(tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> None:
    """Update ``tokens[b, positions[b, k]]`` in place from logits [B, K, V], on checked arguments."""
    batch, count, vocab_size = logits.shape
    if batch * count == 0 or not has_positions(tokens, update):
        return
    with torch.cuda.device_of(tokens):
        rows = Rows(tokens, update, count, vocab_size, 0, batch * count)
        rows.race(logits, logits.stride())


class Rows:
    """Rows first .. first + size - 1 of a step: arguments of its kernels, sums of its slots."""

    def __init__(
        self, tokens: torch.Tensor, update: Update, count: int, vocab_size: int, first: int, size: int
    ) -> None:
        self.tokens, self.update = tokens, update
        self.count, self.vocab_size, self.first, self.size = count, vocab_size, first, size
        self.temperature = inverse_temperature(update.temperature)
        self.filters = Filters(update, vocab_size)
        self.top: torch.Tensor | None = None
        self.threshold: torch.Tensor | None = None

    def race(self, logits: torch.Tensor, strides: tuple[int, ...]) -> None:
        """Resample from logits of the whole vocabulary; `strides` of sequence, position, token."""
        if self.filters:
            self._find_threshold(logits, strides)
        block = group_block(self.vocab_size)
        self.make_slots(block)
        rows = tile_rows(self.size, block, self.tokens.device, _TILE)
        sums_kernel[(triton.cdiv(self.size, rows) * self.slots,)](
            *self.arguments(logits, strides), self.top, self.threshold, self.sums, self.slots,
            **self.sum_flags, ROWS=rows, BLOCK=block, num_warps=_WARPS,
        )  # fmt: skip
        self.settle(logits, strides)

    def arguments(self, logits: torch.Tensor, strides: tuple[int, ...]) -> tuple:
        """The leading arguments of all kernels: where rows and their logits are, and how logits count."""
        update, positions = self.update, self.update.positions
        return (
            self.tokens, *self.tokens.stride(), self.tokens.shape[1], positions,
            *(positions.stride() if positions.dim() == 2 else (0, *positions.stride())),
            update.frozen, self.count, self.vocab_size, self.first, self.size, logits, *strides,
            *by_row(self.temperature), update.softcap, *by_row(update.logit_shift),
        )  # fmt: skip

    @property
    def sum_flags(self) -> dict:
        """What is summed beside the law."""
        return {
            "WANTS_RAW": self._wants_raw and not self._raw_is_law,
            "WANTS_ENTROPY": self.update.entropy is not None,
        }

    def make_slots(self, tokens: int) -> None:
        """Make room for the sums of slots of `tokens` tokens each."""
        self.slot_tokens, self.slots = tokens, triton.cdiv(self.vocab_size, tokens)
        self.sums = self._empty(FIELDS, self.size, self.slots)

    def settle(self, logits: torch.Tensor, strides: tuple[int, ...]) -> None:
        """Write what follows from the sums; `logits` are those that were summed."""
        update, block = self.update, group_block(self.vocab_size)
        parts = max(1, RACE_GROUP // self.slot_tokens) if self.slots > 1 else 1
        groups = min(_next_power(triton.cdiv(self.slots, parts)), max(_SETTLE_TILE // 4 // parts, 4))
        rows = tile_rows(self.size, max(block, groups * parts), self.tokens.device, _SETTLE_TILE)
        settle_kernel[(triton.cdiv(self.size, rows),)](
            *self.arguments(logits, strides), self.top, self.threshold, self.sums, self.slots,
            update.sample_ids, *by_sequence(update.seed), *by_sequence(update.step),
            *by_row(update.noise_rate), *by_row(update.mixture), update.noise_log_probs,
            -math.log(self.vocab_size), update.token_bound(self.vocab_size), update.noise_table,
            update.noise_mask,
            update.log_sum_exp, update.log_prob, update.keep_prob, update.raw_log_prob, update.entropy,
            update.margin, update.argmax,
            NORMALIZE=update.normalize and update.noise_rate is not None, RAW_IS_LAW=self._raw_is_law,
            ROWS=rows, BLOCK=block, SLOT=self.slot_tokens, GROUPS=groups, PARTS=parts, num_warps=_WARPS,
        )  # fmt: skip

    @property
    def _wants_raw(self) -> bool:
        update = self.update
        normalizes = update.normalize and update.noise_rate is not None
        return normalizes or update.log_sum_exp is not None or update.raw_log_prob is not None

    @property
    def _raw_is_law(self) -> bool:
        """Whether the law of every row is the softmax of its logits."""
        return not isinstance(self.temperature, torch.Tensor) and self.temperature == 1 and not self.filters

    def _find_threshold(self, logits: torch.Tensor, strides: tuple[int, ...]) -> None:
        self.top, self.threshold = self._empty(self.size), self._empty(self.size)
        device = self.tokens.device
        tile = _INTERPRETED_TILE if device.type == "cpu" else _THRESHOLD_TILE
        block = min(tile, _next_power(self.vocab_size))
        rows = tile_rows(self.size, block, device, _THRESHOLD_TILE)
        threshold_kernel[(triton.cdiv(self.size, rows),)](
            *self.arguments(logits, strides), self.top, self.threshold, *by_row(self.filters.top_k),
            *by_row(self.filters.top_p_units), *by_row(self.filters.log_min_p),
            TOP_P_FIRST=self.update.top_p_first, ROWS=rows, BLOCK=block, num_warps=_WARPS,
        )  # fmt: skip

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.tokens.device)


def has_positions(tokens: torch.Tensor, update: Update) -> bool:
    """Whether there are positions; where there are none all rows are absent, which their by-products say."""
    if tokens.shape[1] == 0:
        for name, by_product in update.by_products.items():
            by_product.fill_(-1 if name == "argmax" else math.nan)
    return tokens.shape[1] > 0


def group_block(vocab_size: int) -> int:
    """Tokens of a tile that holds a group: a whole one, or the vocabulary of less."""
    return min(RACE_GROUP, _next_power(vocab_size))


def tile_rows(rows: int, columns: int, device: torch.device, size: int) -> int:
    """Rows of a program's tile, a power of two.

    On a GPU it follows from the columns alone, so that sums have one order whatever the number of rows.
    """
    if device.type == "cpu":
        return max(1, min(_INTERPRETED_TILE // columns, triton.next_power_of_2(rows)))
    return max(1, min(size // columns, _MAX_ROWS))


def _next_power(columns: int) -> int:
    return max(4, triton.next_power_of_2(columns))
