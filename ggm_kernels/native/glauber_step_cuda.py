"""`glauber_step` and `linear_glauber_step` in the compiled core, in CUDA. Nothing here synchronises."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous
from ggm_kernels.native.step_arguments import Step
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.reference.precision import without_autocast

_BUFFER_BYTES = 2**25  # of logits at once: they are read back from the device's cache
_BUFFER_ROWS = 1024  # more rows make a product little faster, and tiles narrow


def glauber_step(kernels: Kernels, tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> None:
    """`glauber_step` on checked arguments."""
    step = _Step(kernels, tokens, update, logits.shape[2])
    step.run_rows(rows_contiguous(logits))


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
    rows, bias = hidden.flatten(0, 1), None if bias is None else bias.contiguous()
    if rows.shape[0] == 0:
        return
    plan = _plan(rows.shape[0], weight.shape[0], hidden.dtype.itemsize, step.has_filter)
    buffer = hidden.new_empty(plan.rows, plan.tokens)
    for row in range(0, rows.shape[0], plan.rows):
        _race_tiles(step, rows[row : row + plan.rows], row, weight, bias, buffer)


@dataclass(frozen=True)
class _Plan:
    """Rows and tokens of a buffer of logits."""

    rows: int
    tokens: int


def _plan(rows: int, vocab_size: int, itemsize: int, whole_rows: bool) -> _Plan:
    """A buffer of bounded size; of equal blocks of rows and, unless rows must be whole, equal tiles."""
    capacity = _BUFFER_BYTES // itemsize
    widest = _round_up(vocab_size, RACE_GROUP)
    if whole_rows:
        return _Plan(_share(rows, max(1, capacity // widest)), widest)
    height = _share(rows, _BUFFER_ROWS)
    limit = max(RACE_GROUP, capacity // height // RACE_GROUP * RACE_GROUP)
    return _Plan(height, _round_up(_share(vocab_size, limit), RACE_GROUP))


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
    """Race tile after tile of the vocabulary; the last settles. With filters there is but one."""
    vocab_size, width = weight.shape[0], buffer.shape[1]
    starts = range(0, vocab_size, width)
    work = step.work(rows.shape[0], width, is_whole=len(starts) == 1)
    for start in starts:
        tokens = slice(start, min(start + width, vocab_size))
        part = None if bias is None else bias[tokens]
        logits = _product(rows, weight[tokens], part if _is_rounded(rows) else None, buffer)
        tile = step.tile(logits[None], row_begin, start, None if _is_rounded(rows) else part)
        step.race(tile, rows.shape[0], work, start == 0, tokens.stop == vocab_size)


def _is_rounded(rows: torch.Tensor) -> bool:
    """Whether products are rounded to 16 bits: once, with the bias, or they are not those of `linear`."""
    return rows.dtype.itemsize == 2


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in the memory of `buffer`, whose rows stay where they are aligned."""
    out = buffer[: rows.shape[0], : weight.shape[0]]
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


@dataclass(frozen=True)
class _Work:
    """Memory of a race, uninitialised: of what is not needed None."""

    groups: torch.Tensor | None
    states: torch.Tensor | None


class _Step(Step):
    """A step's arguments in the form of the core, and its parts as calls."""

    def __init__(self, kernels: Kernels, tokens: torch.Tensor, update: Update, vocab_size: int) -> None:
        super().__init__(kernels, tokens, update, vocab_size)
        self._device, self._vocab_size = tokens.device, vocab_size
        self._queue = kernels.queue(tokens.device)

    def run_rows(self, logits: torch.Tensor) -> None:
        """Whole steps of the rows of logits [groups, group, V]."""
        rows = logits.shape[0] * logits.shape[1]
        if rows > 0:
            work = self.work(rows, self._vocab_size, is_whole=True)
            self.race(self.tile(logits, 0, 0), rows, work, True, True)

    def work(self, rows: int, tokens: int, is_whole: bool) -> _Work:
        """Memory for tiles of so many rows and tokens, the whole vocabulary or a part."""
        groups = -(-tokens // RACE_GROUP)
        return _Work(
            None
            if self._vocab_size <= RACE_GROUP
            else self._empty(rows, groups, self.core.GROUP_RECORD_BYTES),
            None if is_whole else self._empty(rows, self.core.ROW_STATE_BYTES),
        )

    def tile(self, logits: torch.Tensor, row_begin: int, token_begin: int, bias: torch.Tensor | None = None):
        """Logits [groups, group, tokens] of rows from `row_begin` on, tokens from `token_begin` on."""
        groups, group, tokens = logits.shape
        return self.core.LogitsTile(
            logits=logits.data_ptr(),
            dtype=DTYPES[logits.dtype],
            group=max(1, group),
            group_stride=logits.stride(0),
            row_stride=logits.stride(1),
            row_begin=row_begin,
            row_ids=0,
            rows=groups * group,
            token_begin=token_begin,
            tokens=tokens,
            bias=address(bias),
        )

    def race(self, tile, rows: int, work: _Work, is_first: bool, is_last: bool) -> None:
        """Race the groups of a tile; the last tile of its `rows` rows writes tokens and by-products."""
        thresholds = None
        if self.has_filter:
            thresholds = torch.empty(rows, 2, dtype=torch.float32, device=self._device)
            self.core.cuda_glauber_threshold(self.args, tile, thresholds=thresholds.data_ptr(), **self._queue)
        memory = self.core.RaceWork(
            groups=address(work.groups), states=address(work.states), is_first=is_first, is_last=is_last
        )
        self.core.cuda_glauber_race(self.args, tile, memory, thresholds=address(thresholds), **self._queue)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self._device)
