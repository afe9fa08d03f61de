"""`glauber_step` and `linear_glauber_step` in the compiled core, on the CPU."""

from __future__ import annotations

import functools
import math
import struct

import torch

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.native.compiled import DTYPES, Kernels, address, rows_contiguous
from ggm_kernels.reference.precision import without_autocast

_TILE_TOKENS = 2048  # of a tile of logits, a multiple of RACE_GROUP
_TILE_ROWS = 512
_FILTERED_LOGITS = 6 * 2**20  # held at once where filters need whole rows; one row at the least


_OUT_OF_RANGE = -1  # and nothing is written


def glauber_step(kernels: Kernels, tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> int:
    """`glauber_step` on checked arguments; the number of lawless rows, or -1: a value is out of range."""
    step = Step(kernels, tokens, update, logits.shape[2])
    if not step.is_valid:
        return _OUT_OF_RANGE
    logits = rows_contiguous(logits)
    return step.core.cpu_glauber_step(step.args, tile_of(step, logits), step.threads)


def tile_of(step: Step, logits: torch.Tensor):
    """Logits [B, K, V], the tokens of a row contiguous, in the form of the core."""
    return _tile(step, logits, logits.shape[1], logits.stride(0), logits.stride(1))


def linear_glauber_step(kernels: Kernels, *arguments) -> int:
    """`linear_glauber_step` on checked arguments; as `glauber_step`."""
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
    if step.has_filter:
        return _whole_rows(step, row_ids, hidden, weight, bias, _FILTERED_LOGITS)
    if weight.shape[0] <= _TILE_TOKENS:
        return _whole_rows(step, row_ids, hidden, weight, bias, _TILE_ROWS * _TILE_TOKENS)
    return _tiles(step, row_ids, hidden, weight, bias)


def _undecided(step: Step, hidden, weight, bias) -> torch.Tensor:
    """Ids of the rows that may draw; the present tokens of the others alone decide that they stay."""
    row_ids = torch.empty(hidden.shape[0], dtype=torch.int64)
    factors = step.core.Factors(
        dtype=DTYPES[hidden.dtype],
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=address(bias),
        hidden_size=hidden.shape[1],
    )
    return row_ids[: step.core.cpu_glauber_undecided(step.args, factors, row_ids.data_ptr(), step.threads)]


def _tiles(step: Step, row_ids, hidden, weight, bias) -> int:
    """Race tile by tile, each consumed while it is in cache."""
    row_ids = torch.arange(len(hidden)) if row_ids is None else row_ids
    buffer = hidden.new_empty(min(_TILE_ROWS, len(hidden)) * _TILE_TOKENS)
    lawless = 0
    for ids, rows in zip(row_ids.split(_TILE_ROWS), hidden.split(_TILE_ROWS), strict=True):
        states = step.core.RowStates(len(rows))
        for token in range(0, weight.shape[0], _TILE_TOKENS):
            part = slice(token, token + _TILE_TOKENS)
            logits = _product(rows, weight[part], None if bias is None else bias[part], buffer)
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
        logits = _product(rows, weight, bias, buffer)
        ids = None if row_ids is None else row_ids[begin : begin + count]
        tile = _tile(step, logits, len(rows), 0, logits.stride(0), ids, row_begin=begin)
        lawless += step.core.cpu_glauber_step(step.args, tile, step.threads)
    return lawless


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


class Step:
    """A step's arguments in the form of the core."""

    def __init__(self, kernels: Kernels, tokens: torch.Tensor, update: Update, vocab_size: int) -> None:
        self.kernels, self.core = kernels, kernels.core
        # What the core's arguments point to must live as long as they do.
        self._kept: list[torch.Tensor] = []
        self._positions = update.positions.to(torch.int64).contiguous()
        self._noise_rate = None if update.noise_rate is None else update.noise_rate.to(torch.float32)
        self.threads = torch.get_num_threads()
        self.has_filter = _has_filter(update, vocab_size)
        self.may_skip_rows = (
            update.noise_rate is not None
            or update.frozen is not None
            or update.mixture is not None
            or update.positions.dim() == 2
        )
        self.args = self._arguments(tokens, update, vocab_size)
        self.is_valid = kernels.are_device_code or self.core.cpu_glauber_check(self.args)

    def _arguments(self, tokens: torch.Tensor, update: Update, vocab_size: int):
        positions, noise_rate = self._positions, self._noise_rate
        noise_strides = (0, 0) if noise_rate is None else (*noise_rate.stride(), 0)[:2]
        step, step_pointer = self._step_arguments(update.step)
        top_k = _number(update.top_k, vocab_size)
        min_p = _number(update.min_p, 0.0)
        return self.core.GlauberArgs(
            tokens=tokens.data_ptr(),
            token_bytes=tokens.element_size(),
            token_row_stride=tokens.stride(0),
            token_stride=tokens.stride(1),
            positions=positions.data_ptr(),
            # Its stride is anything where it is empty.
            position_row_stride=positions.shape[1] if positions.dim() == 2 else 0,
            sample_ids=address(update.sample_ids),
            frozen=address(update.frozen),
            noise_rate=address(noise_rate),
            noise_row_stride=noise_strides[0],
            noise_stride=noise_strides[1],
            noise_log_probs=address(update.noise_log_probs),
            normalize=update.normalize,
            batch=tokens.shape[0],
            length=tokens.shape[1],
            count=positions.shape[-1],
            vocab_size=vocab_size,
            seed=_number(update.seed, 0) & 0xFFFFFFFFFFFFFFFF,
            step=step,
            step_pointer=step_pointer,
            temperature=_temperature(_number(update.temperature, 1.0)),
            top_k=min(top_k, 2**63 - 1),
            top_p=1.0 if update.top_p is None else _float32(_number(update.top_p, 1.0)),
            log_min_p=math.log(_float32(min_p)) if min_p and _float32(min_p) > 0 else -math.inf,
            log_sum_exp=address(update.log_sum_exp),
            log_prob=address(update.log_prob),
            keep_prob=address(update.keep_prob),
            options=self._options(update, vocab_size),
        )

    def _step_arguments(self, step: int | torch.Tensor) -> tuple[int, int]:
        return (
            (0, 0)
            if isinstance(step, torch.Tensor) and step.dim() == 1
            else self.kernels.step_arguments(step)
        )

    def _options(self, update: Update, vocab_size: int):
        """What few calls ask for."""
        if _is_plain(update):
            return _no_options(self.core)
        options = self.core.RowOptions()
        for name in ("seed", "step", "temperature", "top_k", "top_p", "min_p", "logit_shift", "mixture"):
            value = getattr(update, name)
            if isinstance(value, torch.Tensor):
                self._kept.append(value)
                strides = (*value.stride(), 0, 0)[:2]
                setattr(options, name, (value.data_ptr(), *strides))
        options.softcap = update.softcap or 0.0
        options.top_p_first = update.top_p_first
        options.noise_table = address(update.noise_table)
        options.noise_mask = -1 if update.noise_mask is None else update.noise_mask
        options.token_bound = update.token_bound(vocab_size)
        for name in ("raw_log_prob", "entropy", "margin", "argmax"):
            setattr(options, name, address(getattr(update, name)))
        return options


def _has_filter(update: Update, vocab_size: int) -> bool:
    """Whether a filter may leave tokens out of some row."""
    temperature, top_k, top_p, min_p = update.temperature, update.top_k, update.top_p, update.min_p
    if not isinstance(temperature, torch.Tensor) and temperature == 0:
        return False
    return (
        (top_k is not None and (isinstance(top_k, torch.Tensor) or top_k < vocab_size))
        or (top_p is not None and (isinstance(top_p, torch.Tensor) or top_p < 1))
        or (min_p is not None and (isinstance(min_p, torch.Tensor) or min_p > 0))
    )


def _is_plain(update: Update) -> bool:
    """Whether nothing is given that the options are for."""
    numbers = (update.seed, update.step, update.temperature, update.top_k, update.top_p, update.min_p)
    given = (
        update.softcap, update.logit_shift, update.mixture, update.noise_log_probs,
        update.raw_log_prob, update.entropy, update.margin, update.argmax,
    )  # fmt: skip
    return (
        not update.top_p_first
        and not any(isinstance(value, torch.Tensor) for value in numbers if value is not None)
        and all(value is None for value in given)
    )


@functools.cache
def _no_options(core):
    return core.RowOptions()


def _number(value, otherwise):
    """A number; what stands for one where a tensor says it row by row, or nothing does."""
    return otherwise if value is None or isinstance(value, torch.Tensor) else value


def _float32(value: float) -> float:
    """Rounded as a tensor of numbers is, so that a row is drawn alike whichever it was given by."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _temperature(temperature: float) -> float:
    """As float32, of which only 0 is 0."""
    return 0.0 if temperature == 0 else min(max(temperature, 2.0**-126), 3e38)
