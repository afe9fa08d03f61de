"""The arguments of a step in the form of the core."""

from __future__ import annotations

import functools
import math
import struct

import torch

from ggm_kernels.arguments.glauber_step import Update
from ggm_kernels.native.compiled import Kernels, address


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
            update.noise_rate is not None or update.frozen is not None or update.positions.dim() == 2
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
    return 0.0 if temperature == 0 else min(max(temperature, 2.0**-126), 2.0**126)
