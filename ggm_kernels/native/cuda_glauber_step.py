"""`glauber_step` and `linear_glauber_step` in the compiled core, in CUDA. Nothing here synchronises."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous
from ggm_kernels.native.glauber_step import Step
from ggm_kernels.ops.glauber_update import Update
from ggm_kernels.reference.precision import without_autocast

_BUFFER_BYTES = 2**25  # of logits at once: they are read back from the device's cache
_BUFFER_ROWS = 4096  # more rows make a product no faster
_MULTIPLE = 256  # tokens in a tile: chunks stay aligned, products fast


def glauber_step(kernels: Kernels, tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> None:
    """`glauber_step` on checked arguments."""
    step = _Step(kernels, tokens, update, logits.shape[2])
    step.run_rows(rows_contiguous(logits), 0)


def linear_glauber_step(kernels: Kernels, *arguments) -> None:
    """`linear_glauber_step` on checked arguments."""
    _linear_glauber_step(*arguments, kernels)


@without_autocast
def _linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
    kernels: Kernels,
) -> None:
    step = _Step(kernels, tokens, update, weight.shape[0])
    rows = hidden.flatten(0, 1)
    if rows.shape[0] == 0:
        return
    plan = _plan(rows.shape[0], weight.shape[0], hidden.dtype.itemsize, step.has_filter)
    buffer = hidden.new_empty(plan.rows, plan.tokens)
    for row in range(0, rows.shape[0], plan.rows):
        part = rows[row : row + plan.rows]
        if step.has_filter:
            step.run_rows(_product(part, weight, bias, buffer)[None], row)
        else:
            _race_tiles(step, part, row, weight, bias, buffer)


@dataclass(frozen=True)
class _Plan:
    """Rows and tokens of a buffer of logits."""

    rows: int
    tokens: int


def _plan(rows: int, vocab_size: int, itemsize: int, whole_rows: bool) -> _Plan:
    """A buffer of bounded size; of equal blocks of rows and, unless rows must be whole, equal tiles."""
    capacity = _BUFFER_BYTES // itemsize
    widest = _round_up(vocab_size, _MULTIPLE)
    if whole_rows:
        return _Plan(_share(rows, max(1, capacity // widest)), widest)
    height = _share(rows, _BUFFER_ROWS)
    limit = max(_MULTIPLE, capacity // height // _MULTIPLE * _MULTIPLE)
    return _Plan(height, _round_up(_share(vocab_size, limit), _MULTIPLE))


def _share(whole: int, limit: int) -> int:
    """Size of equal parts of at most `limit`, as few as can be."""
    return -(-whole // -(-whole // limit))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _race_tiles(
    step: _Step,
    rows: torch.Tensor,
    row_begin: int,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    buffer: torch.Tensor,
) -> None:
    """Race tile after tile of the vocabulary, then settle."""
    vocab_size, width = weight.shape[0], buffer.shape[1]
    sizes = [min(width, vocab_size - start) for start in range(0, vocab_size, width)]
    parts = [step.parts(rows.shape[0], size) for size in sizes]
    states = step.states(rows.shape[0], sum(parts))
    for index, size in enumerate(sizes):
        tokens = slice(index * width, index * width + size)
        logits = _product(rows, weight[tokens], None if bias is None else bias[tokens], buffer)
        tile = step.tile(logits[None], row_begin, tokens.start)
        step.race(tile, states, sum(parts[:index]), parts[index])
    step.settle(tile, states)


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in the memory of `buffer`, whose rows stay where they are aligned."""
    out = buffer[: rows.shape[0], : weight.shape[0]]
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


class _Step(Step):
    """A step's arguments in the form of the core, and its parts as calls."""

    def __init__(self, kernels: Kernels, tokens: torch.Tensor, update: Update, vocab_size: int) -> None:
        super().__init__(kernels, tokens, update, vocab_size)
        self._device = tokens.device
        self._queue = kernels.queue(tokens.device)

    def run_rows(self, logits: torch.Tensor, row_begin: int) -> None:
        """Whole steps of the rows of logits [groups, group, V], from row `row_begin` of the step on."""
        tile = self.tile(logits, row_begin, 0)
        rows = logits.shape[0] * logits.shape[1]
        if rows == 0:
            return
        thresholds = None
        if self.has_filter:
            thresholds = torch.empty(rows, 2, dtype=torch.float32, device=self._device)
            self.core.cuda_glauber_threshold(self.args, tile, thresholds.data_ptr(), *self._queue)
        parts = self.parts(rows, logits.shape[2])
        states = self.states(rows, parts)
        self.race(tile, states, 0, parts, thresholds)
        self.settle(tile, states)

    def parts(self, rows: int, tokens: int) -> int:
        """In how many parts to race so many tokens of so many rows."""
        return self.core.cuda_glauber_parts(rows, tokens, self._queue[1])

    def states(self, rows: int, slots: int) -> torch.Tensor:
        """Memory for the states of races, uninitialised."""
        return torch.empty(rows, slots, self.core.RACE_STATE_BYTES, dtype=torch.uint8, device=self._device)

    def tile(self, logits: torch.Tensor, row_begin: int, token_begin: int):
        """Logits [groups, group, tokens] of rows from `row_begin` on, tokens from `token_begin` on."""
        groups, group, tokens = logits.shape
        return self.core.LogitsTile(
            logits.data_ptr(), DTYPES[logits.dtype], max(1, group), logits.stride(0), logits.stride(1),
            row_begin, 0, groups * group, token_begin, tokens,
        )  # fmt: skip

    def race(self, tile, states, slot: int, parts: int, thresholds: torch.Tensor | None = None) -> None:
        """Race the tokens of a tile in `parts` parts, which go to the slots from `slot` on."""
        slots = self.core.RaceSlots(states.data_ptr(), states.shape[1], slot, parts)
        self.core.cuda_glauber_race(self.args, tile, slots, address(thresholds), *self._queue)

    def settle(self, tile, states: torch.Tensor) -> None:
        """Write what the races of a tile's rows have brought."""
        slots = self.core.RaceSlots(states.data_ptr(), states.shape[1], 0, 0)
        self.core.cuda_glauber_settle(self.args, tile, slots, *self._queue)
