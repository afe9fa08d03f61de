"""`glauber_step` and `linear_glauber_step` in the compiled core, on the CPU."""

from __future__ import annotations

import math

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous
from ggm_kernels.ops.glauber_step import Update
from ggm_kernels.reference.precision import without_autocast

_TILE_TOKENS = 2048  # of a tile of logits, a multiple of 4
_TILE_ROWS = 512
_FILTERED_LOGITS = 6 * 2**20  # held at once where filters need whole rows; one row at the least


def glauber_step(kernels: Kernels, tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> bool:
    """`glauber_step` on checked arguments; False, and nothing written, where a value is out of range."""
    step = Step(kernels, tokens, update, logits.shape[2])
    if step.is_valid:
        logits = rows_contiguous(logits)
        strides = logits.stride(0), logits.stride(1)
        step.core.cpu_glauber_step(step.args, _tile(step, logits, logits.shape[1], *strides), step.threads)
    return step.is_valid


def linear_glauber_step(kernels: Kernels, *arguments) -> bool:
    """`linear_glauber_step` on checked arguments; False, and nothing written, if a value is out of range."""
    return _linear_glauber_step(*arguments, kernels)


@without_autocast
def _linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
    kernels: Kernels,
) -> bool:
    step = Step(kernels, tokens, update, weight.shape[0])
    if not step.is_valid:
        return False
    hidden, weight = rows_contiguous(hidden.flatten(0, 1)), rows_contiguous(weight)
    bias = None if bias is None else bias.contiguous()
    row_ids = None
    if update.noise_rate is not None or update.frozen is not None:
        row_ids = _undecided(step, hidden, weight, bias)
        hidden = hidden[row_ids]
    if step.has_filter:
        _whole_rows(step, row_ids, hidden, weight, bias, _FILTERED_LOGITS)
    elif weight.shape[0] <= _TILE_TOKENS:
        _whole_rows(step, row_ids, hidden, weight, bias, _TILE_ROWS * _TILE_TOKENS)
    else:
        _tiles(step, row_ids, hidden, weight, bias)
    return True


def _undecided(step: Step, hidden, weight, bias) -> torch.Tensor:
    """Ids of the rows that may draw; the present tokens of the others alone decide that they stay."""
    row_ids = torch.empty(hidden.shape[0], dtype=torch.int64)
    factors = step.core.Factors(
        DTYPES[hidden.dtype], hidden.data_ptr(), hidden.stride(0), weight.data_ptr(), weight.stride(0),
        address(bias), hidden.shape[1],
    )  # fmt: skip
    return row_ids[: step.core.cpu_glauber_undecided(step.args, factors, row_ids.data_ptr(), step.threads)]


def _tiles(step: Step, row_ids, hidden, weight, bias) -> None:
    """Race tile by tile, each consumed while it is in cache."""
    row_ids = torch.arange(len(hidden)) if row_ids is None else row_ids
    buffer = hidden.new_empty(min(_TILE_ROWS, len(hidden)) * _TILE_TOKENS)
    for ids, rows in zip(row_ids.split(_TILE_ROWS), hidden.split(_TILE_ROWS), strict=True):
        states = step.core.RaceStates(len(rows))
        for token in range(0, weight.shape[0], _TILE_TOKENS):
            part = slice(token, token + _TILE_TOKENS)
            logits = _product(rows, weight[part], None if bias is None else bias[part], buffer)
            tile = _tile(step, logits, len(rows), 0, logits.stride(0), ids, token)
            step.core.cpu_glauber_race(step.args, tile, states, step.threads)
        step.core.cpu_glauber_settle(step.args, ids.data_ptr(), states)


def _whole_rows(step: Step, row_ids, hidden, weight, bias, most_logits: int) -> None:
    """As many whole rows at a time as `most_logits` allows: filters need them, and short ones are small."""
    count = max(1, most_logits // weight.shape[0])
    buffer = hidden.new_empty(min(count, len(hidden)) * weight.shape[0])
    for begin in range(0, len(hidden), count):
        rows = hidden[begin : begin + count]
        logits = _product(rows, weight, bias, buffer)
        ids = None if row_ids is None else row_ids[begin : begin + count]
        tile = _tile(step, logits, len(rows), 0, logits.stride(0), ids, row_begin=begin)
        step.core.cpu_glauber_step(step.args, tile, step.threads)


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, buffer: torch.Tensor
) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in the memory of `buffer`."""
    out = buffer[: rows.shape[0] * weight.shape[0]].view(rows.shape[0], weight.shape[0])
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
        logits.data_ptr(), DTYPES[logits.dtype], max(1, group), group_stride, row_stride, row_begin,
        address(row_ids), rows, token_begin, logits.shape[-1],
    )  # fmt: skip


class Step:
    """A step's arguments in the form of the core."""

    def __init__(self, kernels: Kernels, tokens: torch.Tensor, update: Update, vocab_size: int) -> None:
        self.kernels, self.core = kernels, kernels.core
        # What the core's arguments point to must live as long as they do.
        self._positions = update.positions.to(torch.int64).contiguous()
        self._noise_rate = None if update.noise_rate is None else update.noise_rate.to(torch.float32)
        self.threads = torch.get_num_threads()
        self.has_filter = update.temperature > 0 and (
            (update.top_k is not None and update.top_k < vocab_size)
            or (update.top_p is not None and update.top_p < 1)
            or (update.min_p is not None and update.min_p > 0)
        )
        self.args = self._arguments(tokens, update, vocab_size)
        self.is_valid = kernels.are_device_code or self.core.cpu_glauber_check(self.args)

    def _arguments(self, tokens: torch.Tensor, update: Update, vocab_size: int):
        positions, noise_rate = self._positions, self._noise_rate
        noise_strides = (0, 0)
        if noise_rate is not None:
            noise_strides = (noise_rate.stride(0), noise_rate.stride(1) if noise_rate.dim() == 2 else 0)
        return self.core.GlauberArgs(
            tokens.data_ptr(),
            tokens.element_size(),
            *tokens.stride(),
            positions.data_ptr(),
            positions.shape[1] if positions.dim() == 2 else 0,  # its stride is anything where it is empty
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
            *self.kernels.step_arguments(update.step),
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
