"""What `linear_cross_entropy` is given of each row, checked: target, weight, shift of one logit.

A weight, and whether the target is ignored, are one factor of the row's loss: its scale.
"""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.backends import checks_values

_FLOATS = (*checks.FLOATS, torch.float64)


def check_row_tensor(name: str, value: torch.Tensor, hidden: torch.Tensor, dtypes) -> None:
    """Raise unless it is a tensor [N] of one of the dtypes where `hidden` is."""
    checks.tensor(name, value, dtypes=dtypes, shapes=[hidden.shape[:1]])
    checks.same_device(name, value, "hidden", hidden)


def _check_constant(name: str, value: torch.Tensor, hidden: torch.Tensor, dtypes) -> torch.Tensor:
    """Of the dtype that the arithmetic has."""
    check_row_tensor(name, value, hidden, dtypes)
    if value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; allowed: a constant (detach it)")
    return value.to(_accumulate(hidden))


def _accumulate(hidden: torch.Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def row_scale(
    row_weight: torch.Tensor | None, targets: torch.Tensor, ignore_index: int, hidden: torch.Tensor
) -> torch.Tensor:
    """What the loss of each row counts: its weight, 0 where it is ignored."""
    counts = targets.long() != ignore_index  # int32 would compare with 32 bits of it
    if row_weight is None:
        return counts.to(_accumulate(hidden))
    return torch.where(counts, _check_constant("row_weight", row_weight, hidden, (*_FLOATS, torch.bool)), 0.0)


def mean_scale(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of each row in the mean, and whether there is none: then 0 keeps the gradients 0."""
    weight = scale.sum()
    nothing = weight == 0
    return torch.where(nothing, 0.0, scale / weight), nothing


def checked_shift(
    shift: torch.Tensor | None, token: torch.Tensor | None, hidden: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Check `logit_shift` and `shifted_token`: both or neither."""
    if (shift is None) != (token is None):
        missing, given = (
            ("logit_shift", "shifted_token") if shift is None else ("shifted_token", "logit_shift")
        )
        raise ValueError(f"{missing}: got None; allowed: a tensor, as {given} is given")
    if shift is None or token is None:
        return None, None
    check_row_tensor("shifted_token", token, hidden, checks.INTEGERS)
    return _check_constant("logit_shift", shift, hidden, _FLOATS), token


def check_values(targets, shifted_token, ignore_index: int, all_rows: bool, vocab_size: int) -> None:
    """Raise IndexError where a token that is read is outside the vocabulary and values are looked at."""
    if not checks_values(targets.device):
        return
    ignored = targets.long() == ignore_index
    checks.values_in_range("targets", _legal_where(targets, ignored), 0, vocab_size, IndexError)
    if shifted_token is not None:
        unread = torch.zeros_like(ignored) if all_rows else ignored
        checks.values_in_range(
            "shifted_token", _legal_where(shifted_token, unread), 0, vocab_size, IndexError
        )


def _legal_where(tokens: torch.Tensor, unread: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(unread, 0)
