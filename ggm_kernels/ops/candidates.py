"""Candidates of the losses and their weights: what is checked, and in which form ops hold them."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import torch

from ggm_kernels import checks
from ggm_kernels.backends import checks_values

FLOATS = (*checks.FLOATS, torch.float64)
_WEIGHT_DTYPES = (*FLOATS, torch.bool)
Weight = torch.Tensor | float
_CHUNK = 2**20  # candidates, shared ones among them, of the rows that go through a kernel at once


class Shared(NamedTuple):
    """Noise candidates that all rows share: their weight in a row is a factor of the row times one of theirs.

    Attributes
    ----------
    candidates : torch.Tensor
        Token ids [S].
    row_weight : torch.Tensor or None
        float [N]; None is 1.
    candidate_weight : torch.Tensor
        float [S].
    """

    candidates: torch.Tensor
    row_weight: torch.Tensor | None
    candidate_weight: torch.Tensor


def checked_candidates(candidates: torch.Tensor, rows_name: str, rows: torch.Tensor) -> torch.Tensor:
    """Check the candidates of each row, [N] or [N, C]; return them as [N, C]."""
    checks.tensor("candidates", candidates, dtypes=checks.INTEGERS, dims=(1, 2))
    if candidates.shape[0] != rows.shape[0]:
        raise ValueError(
            f"candidates: got shape {tuple(candidates.shape)}; allowed: ({rows.shape[0]},) or "
            f"({rows.shape[0]}, C), as {rows_name} has {rows.shape[0]} rows"
        )
    checks.same_device("candidates", candidates, rows_name, rows)
    return candidates if candidates.dim() == 2 else candidates[:, None]


def checked_weights(
    signal: Weight, noise: Weight | None, candidates: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check both weights; return them expanded to [N, C], in the dtype that sums are in."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    signal = _check_weight("signal_weight", signal, candidates, accumulate)
    noise = 1.0 - signal if noise is None else _check_weight("noise_weight", noise, candidates, accumulate)
    return _expanded(signal, candidates.shape), _expanded(noise, candidates.shape)


def _expanded(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return weight if weight.shape == shape else weight.expand(shape)


def _check_weight(name: str, value: Weight, candidates: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, count = candidates.shape
    if not isinstance(value, torch.Tensor):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed: a tensor or a number")
        return torch.full((), float(value), dtype=dtype, device=candidates.device)
    shapes = [(rows, count), (rows, 1), (1, count), (1, 1), (1,), (), *([(rows,)] if count == 1 else [])]
    checks.tensor(name, value, dtypes=_WEIGHT_DTYPES, shapes=shapes)
    value = _constant(name, value, candidates)
    value = value if value.dtype == dtype else value.to(dtype)
    return value[:, None] if value.dim() == 1 else value


def checked_offset(offset: torch.Tensor | None, candidates: torch.Tensor) -> torch.Tensor | None:
    """Check what is added to every logit of a row."""
    if offset is None:
        return None
    checks.tensor("offset", offset, dtypes=FLOATS, shapes=[candidates.shape[:1]])
    return _constant("offset", offset, candidates)


def _constant(name: str, value: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    checks.same_device(name, value, "candidates", candidates)
    if value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; allowed: a constant (detach it)")
    return value


def check_values(candidates: torch.Tensor, vocab_size: int, name: str = "candidates") -> None:
    """Raise IndexError where a candidate is outside the vocabulary and values are looked at."""
    if checks_values(candidates.device):
        # As a caller has them.
        named = candidates[:, 0] if candidates.dim() == 2 and candidates.shape[1] == 1 else candidates
        checks.values_in_range(name, named, 0, vocab_size, IndexError)


def checked_shared(
    shared: torch.Tensor | None, weight: Weight | None, candidates: torch.Tensor, dtype: torch.dtype
) -> Shared | tuple[None, None, None]:
    """Check the shared candidates and their weight: a number, or per candidate, or per row."""
    if shared is None:
        if weight is not None:
            raise ValueError("shared_weight: got a value without shared_candidates; allowed: None")
        return None, None, None
    checks.tensor("shared_candidates", shared, dtypes=checks.INTEGERS, dims=(1,))
    checks.same_device("shared_candidates", shared, "candidates", candidates)
    rows, count = candidates.shape[0], shared.shape[0]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weight = 1.0 if weight is None else weight
    if not isinstance(weight, torch.Tensor):
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(f"shared_weight: got {type(weight).__name__}; allowed: a tensor or a number")
        return Shared(
            shared, None, torch.full((count,), float(weight), dtype=accumulate, device=shared.device)
        )
    shapes = [(count,), (1, count), (rows,), (rows, 1), (1, 1), (1,), ()]
    checks.tensor("shared_weight", weight, dtypes=_WEIGHT_DTYPES, shapes=shapes)
    weight = _constant("shared_weight", weight, candidates).to(accumulate)
    if weight.dim() == 0 or weight.shape in ((count,), (1, count), (1,), (1, 1)):
        return Shared(shared, None, weight.flatten().expand(count))
    return Shared(shared, weight.flatten(), torch.ones(count, dtype=accumulate, device=shared.device))


def with_shared(
    candidates: torch.Tensor, signal_weight: torch.Tensor, noise_weight: torch.Tensor, shared: Shared
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Some rows at a time, those with all candidates and their weights: a row's own, then the shared ones."""
    count = candidates.shape[1] + len(shared.candidates)
    size = max(1, _CHUNK // max(1, count))
    for start in range(0, len(candidates), size):
        rows = slice(start, start + size)
        own = candidates[rows]
        noise = shared.candidate_weight.expand(len(own), -1)
        if shared.row_weight is not None:
            noise = noise * shared.row_weight[rows, None]
        yield (
            rows,
            torch.cat([own, shared.candidates.to(own.dtype).expand(len(own), -1)], dim=1),
            torch.cat([signal_weight[rows], torch.zeros_like(noise)], dim=1),
            torch.cat([noise_weight[rows], noise], dim=1),
        )
