"""`glauber_step` and `linear_glauber_step` in the compiled core; for csrc/cuda see glauber_step_cuda.py."""

from __future__ import annotations

import math

import torch

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.native import glauber_step_cuda
from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous
from ggm_kernels.native.skinny_product import factors_of, skinny_product
from ggm_kernels.native.step_arguments import Step
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.reference.precision import without_autocast

# Of a tile of logits: no fewer tokens, no more rows; of few rows as many tokens as stay in cache.
_TILE_TOKENS = 2048
_TILE_ROWS = 512
_TILE_LOGITS = 2**18
_FILTERED_LOGITS = 6 * 2**20  # held at once where filters need whole rows; one row at the least


_OUT_OF_RANGE = -1  # and nothing is written


def glauber_step(kernels: Kernels, tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> int | None:
    """`glauber_step` on checked arguments.

    Of csrc/cpu the number of lawless rows, or -1: a value is out of range. Of csrc/cuda None.
    """
    if kernels.are_device_code:
        glauber_step_cuda.glauber_step(kernels, tokens, logits, update)
        return None
    step = Step(kernels, tokens, update, logits.shape[2])
    if not step.is_valid:
        return _OUT_OF_RANGE
    logits = rows_contiguous(logits)
    return step.core.cpu_glauber_step(step.args, tile_of(step, logits), step.threads)


def tile_of(step: Step, logits: torch.Tensor):
    """Logits [B, K, V], the tokens of a row contiguous, in the form of the core."""
    return _tile(step, logits, logits.shape[1], logits.stride(0), logits.stride(1))


def linear_glauber_step(kernels: Kernels, *arguments) -> int | None:
    """`linear_glauber_step` on checked arguments; as `glauber_step`."""
    if kernels.are_device_code:
        glauber_step_cuda.linear_glauber_step(kernels, *arguments)
        return None
    return _linear_glauber_step(*arguments, kernels)


@without_autocast
def _linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
    kernels: Kernels,
) -> int:
    step = Step(kernels, tokens, update, weight.shape[0])
    if not step.is_valid:
        return _OUT_OF_RANGE
    hidden, weight = rows_contiguous(hidden.flatten(0, 1)), rows_contiguous(weight)
    bias = None if bias is None else bias.contiguous()
    row_ids = None
    if step.may_skip_rows:
        row_ids = _undecided(step, hidden, weight, bias)
        hidden = hidden[row_ids]
    if len(hidden) == 0:
        return 0  # or each tile of the weight would be multiplied by nothing
    if step.has_filter:
        return _whole_rows(step, row_ids, hidden, weight, bias, _FILTERED_LOGITS)
    if weight.shape[0] <= _TILE_TOKENS:
        return _whole_rows(step, row_ids, hidden, weight, bias, _TILE_ROWS * _TILE_TOKENS)
    return _tiles(step, row_ids, hidden, weight, bias)


def _undecided(step: Step, hidden, weight, bias) -> torch.Tensor:
    """Ids of the rows that may draw; the present tokens of the others alone decide that they stay."""
    row_ids = torch.empty(hidden.shape[0], dtype=torch.int64)
    factors = factors_of(step.core, hidden, weight, bias)
    return row_ids[: step.core.cpu_glauber_undecided(step.args, factors, row_ids.data_ptr(), step.threads)]


def _tiles(step: Step, row_ids, hidden, weight, bias) -> int:
    """Race tile by tile, each consumed while it is in cache."""
    row_ids = torch.arange(len(hidden)) if row_ids is None else row_ids
    tile_tokens = max(_TILE_TOKENS, _TILE_LOGITS // len(hidden) // RACE_GROUP * RACE_GROUP)
    buffer = hidden.new_empty(min(_TILE_ROWS, len(hidden)) * tile_tokens)
    lawless = 0
    for ids, rows in zip(row_ids.split(_TILE_ROWS), hidden.split(_TILE_ROWS), strict=True):
        states = step.core.RowStates(len(rows))
        for token in range(0, weight.shape[0], tile_tokens):
            part = slice(token, token + tile_tokens)
            logits = _logits(rows, weight[part], None if bias is None else bias[part], buffer)
            tile = _tile(step, logits, len(rows), 0, logits.stride(0), ids, token)
            step.core.cpu_glauber_race(step.args, tile, states, step.threads)
        lawless += step.core.cpu_glauber_settle(step.args, ids.data_ptr(), states)
    return lawless


def _whole_rows(step: Step, row_ids, hidden, weight, bias, most_logits: int) -> int:
    """As many whole rows at a time as `most_logits` allows: filters need them, and short ones are small."""
    count = max(1, most_logits // weight.shape[0])
    buffer = hidden.new_empty(min(count, len(hidden)) * weight.shape[0])
    lawless = 0
    for begin in range(0, len(hidden), count):
        rows = hidden[begin : begin + count]
        logits = _logits(rows, weight, bias, buffer)
        ids = None if row_ids is None else row_ids[begin : begin + count]
        tile = _tile(step, logits, len(rows), 0, logits.stride(0), ids, row_begin=begin)
        lawless += step.core.cpu_glauber_step(step.args, tile, step.threads)
    return lawless


def _logits(rows, weight, bias, buffer: torch.Tensor) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in the memory of `buffer`."""
    out = buffer[: rows.shape[0] * weight.shape[0]].view(rows.shape[0], weight.shape[0])
    if skinny_product(rows, weight, bias, out):
        return out
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


def _tile(
    step: Step,
    logits: torch.Tensor,
    group,
    group_stride,
    row_stride,
    row_ids=None,
    token_begin=0,
    row_begin=0,
):
    rows = math.prod(logits.shape[:-1])
    return step.core.LogitsTile(
        logits=logits.data_ptr(),
        dtype=DTYPES[logits.dtype],
        group=max(1, group),
        group_stride=group_stride,
        row_stride=row_stride,
        row_begin=row_begin,
        row_ids=address(row_ids),
        rows=rows,
        token_begin=token_begin,
        tokens=logits.shape[-1],
        bias=0,
    )
