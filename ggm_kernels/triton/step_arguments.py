"""Arguments of a Glauber step as Triton takes them: values by row as address and strides, and numbers."""

from __future__ import annotations

import ctypes
import math

import torch

from ggm_kernels.arguments.glauber_step import Update

_LARGEST_INVERSE = 3e38


def by_row(value) -> tuple:
    """A number or None, or a tensor [B] or [B, K]: the value and its strides over sequences and rows."""
    if not isinstance(value, torch.Tensor):
        return value, 0, 0
    return value, *(*value.stride(), 0, 0)[:2]


def by_sequence(value) -> tuple:
    """A number, or a tensor 0-d or [B]: the value and its stride over sequences."""
    return by_row(value)[:2]


def inverse_temperature(temperature: float | torch.Tensor) -> float | torch.Tensor:
    """1 / temperature as a finite normal float32; 0 for temperature 0, which asks for the largest logit."""
    if isinstance(temperature, torch.Tensor):
        inverse = (1 / temperature.double()).clamp(2.0**-126, _LARGEST_INVERSE).to(torch.float32)
        return torch.where(temperature == 0, 0.0, inverse)
    temperature = _single(temperature)
    return min(max(1 / temperature, 2.0**-126), _LARGEST_INVERSE) if temperature > 0 else 0.0


class Filters:
    """What top-k, top-p and min-p may leave out of rows of V logits; None where one leaves out nothing."""

    def __init__(self, update: Update, vocab_size: int) -> None:
        is_greedy = not isinstance(update.temperature, torch.Tensor) and update.temperature == 0
        self.top_k = None if is_greedy else _top_k(update.top_k, vocab_size)
        self.top_p_units = None if is_greedy else _top_p_units(update.top_p)
        self.log_min_p = None if is_greedy else _log_min_p(update.min_p)

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.top_k, self.top_p_units, self.log_min_p))


def _top_k(top_k, vocab_size: int):
    return top_k if isinstance(top_k, torch.Tensor) or (top_k is not None and top_k < vocab_size) else None


def _top_p_units(top_p):
    """In units of 2**-53, int64."""
    if isinstance(top_p, torch.Tensor):
        return (top_p.double() * 2.0**53).round().to(torch.int64)
    return None if top_p is None or _single(top_p) >= 1 else round(_single(top_p) * 2**53)


def _log_min_p(min_p):
    if isinstance(min_p, torch.Tensor):
        return min_p.double().log().to(torch.float32)
    return math.log(_single(min_p)) if min_p and _single(min_p) > 0.0 else None


def _single(value: float) -> float:
    """The value as float32 has it."""
    return ctypes.c_float(value).value
