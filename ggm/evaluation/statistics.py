"""Standard error of a mean."""

from __future__ import annotations

import math

import torch


def standard_error(values: torch.Tensor) -> float | None:
    """Standard error of the mean of independent numbers, float [N]; None for fewer than two."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
