"""`glauber_step` and `linear_glauber_step` in the compiled core, on the CPU."""

from __future__ import annotations

import math

import torch

from ggm_kernels.native.compiled import DTYPES, address, core, rows_contiguous, step_arguments
from ggm_kernels.ops.glauber_step import Update
from ggm_kernels.reference.precision import without_autocast

_TILE_TOKENS = 2048  # of a tile of logits, a multiple of 4
_TILE_ROWS = 512
_FILTERED_LOGITS = 6 * 2**20  # held at once where filters need whole rows; one row at the least


def glauber_step(tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> bool:
    """`glauber_step` on checked arguments; False, and nothing written, where a value is out of range."""
    step = _Step(tokens, update, logits.shape[2])
    if step.is_valid:
        logits = rows_contiguous(logits)
        step.run_rows(logits, 0, group=logits.shape[1])
    return step.is_valid


@without_autocast
def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
) -> bool:
    """`linear_glauber_step` on checked arguments; False, and nothing written, where a value is out of range."""
    step = _Step(tokens, update, weight.shape[0])
    if step.is_valid:
        run = _whole_rows if step.has_filter else _tiles
        run(step, hidden.flatten(0, 1), weight, bias)
    return step.is_valid


def _tiles(step: _Step, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Race tile by tile, each consumed while it is in cache."""
    buffer = hidden.new_empty(min(_TILE_ROWS, hidden.shape[0]) * _TILE_TOKENS)
    for row in range(0, hidden.shape[0], _TILE_ROWS):
        rows = hidden[row : row + _TILE_ROWS]
        states = core.RaceStates(rows.shape[0])
        for token in range(0, weight.shape[0], _TILE_TOKENS):
            part = slice(token, token + _TILE_TOKENS)
            tile = _product(rows, weight[part], None if bias is None else bias[part], buffer)
            step.race(tile, row, token, states)
        step.settle(states, row)


def _whole_rows(step: _Step, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """A few rows of logits at a time: filters need all of a row."""
    count = max(1, _FILTERED_LOGITS // weight.shape[0])
    buffer = hidden.new_empty(min(count, hidden.shape[0]) * weight.shape[0])
    for row in range(0, hidden.shape[0], count):
        logits = _product(hidden[row : row + count], weight, bias, buffer)
        step.run_rows(logits[None], row, group=logits.shape[0])


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in the memory of `buffer`."""
    out = buffer[: rows.shape[0] * weight.shape[0]].view(rows.shape[0], weight.shape[0])
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


class _Step:
    """One step's arguments in the form of the core, and its parts as calls."""

    def __init__(self, tokens: torch.Tensor, update: Update, vocab_size: int) -> None:
        # What the core's arguments point to must live as long as they do.
        self._positions = update.positions.to(torch.int64).contiguous()
        self._noise_rate = None if update.noise_rate is None else update.noise_rate.to(torch.float32)
        self._threads = torch.get_num_threads()
        self.has_filter = update.temperature > 0 and (
            (update.top_k is not None and update.top_k < vocab_size)
            or (update.top_p is not None and update.top_p < 1)
            or (update.min_p is not None and update.min_p > 0)
        )
        self._args = self._arguments(tokens, update, vocab_size)
        self.is_valid = core.cpu_glauber_check(self._args)

    def run_rows(self, logits: torch.Tensor, row_begin: int, group: int) -> None:
        """Whole steps of the rows of logits [groups, group, V]."""
        tile = self._tile(logits, group, logits.stride(0), logits.stride(1), row_begin, 0)
        core.cpu_glauber_step(self._args, tile, self._threads)

    def race(self, logits: torch.Tensor, row_begin: int, token_begin: int, states) -> None:
        """Race the tokens of a tile of logits [rows, tokens]."""
        tile = self._tile(logits, max(1, logits.shape[0]), 0, logits.stride(0), row_begin, token_begin)
        core.cpu_glauber_race(self._args, tile, states, self._threads)

    def settle(self, states, row_begin: int) -> None:
        """Write what the races of the rows from `row_begin` on have brought."""
        core.cpu_glauber_settle(self._args, states, row_begin)

    @staticmethod
    def _tile(logits, group, group_stride, row_stride, row_begin, token_begin):
        rows = math.prod(logits.shape[:-1])
        return core.LogitsTile(
            logits.data_ptr(), DTYPES[logits.dtype], max(1, group), group_stride, row_stride, row_begin, rows,
            token_begin, logits.shape[-1],
        )  # fmt: skip

    def _arguments(self, tokens: torch.Tensor, update: Update, vocab_size: int):
        positions, noise_rate = self._positions, self._noise_rate
        noise_strides = (0, 0)
        if noise_rate is not None:
            noise_strides = (noise_rate.stride(0), noise_rate.stride(1) if noise_rate.dim() == 2 else 0)
        return core.GlauberArgs(
            tokens.data_ptr(),
            tokens.element_size(),
            *tokens.stride(),
            positions.data_ptr(),
            positions.stride(0) if positions.dim() == 2 else 0,
            address(update.sample_ids),
            address(update.frozen),
            address(noise_rate),
            *noise_strides,
            address(update.noise_log_probs),
            update.normalize,
            *tokens.shape,
            positions.shape[-1],
            vocab_size,
            update.seed & 0xFFFFFFFFFFFFFFFF,
            *step_arguments(update.step),
            inverse_temperature(update.temperature),
            update.temperature == 0,
            vocab_size if update.top_k is None else update.top_k,
            1.0 if update.top_p is None else update.top_p,
            -math.inf if not update.min_p else math.log(update.min_p),
            address(update.log_sum_exp),
            address(update.log_prob),
            address(update.keep_prob),
        )


def inverse_temperature(temperature: float) -> float:
    """1 / temperature as a finite normal float32; 1 for temperature 0, which asks for the largest logit."""
    if temperature == 0:
        return 1.0
    return min(max(1 / temperature, 2.0**-126), 3e38)
