"""Uniform random numbers of the model layer, all from `ggm_kernels.random_tokens`."""

from __future__ import annotations

import torch

from ggm_kernels import Stream, random_tokens

_RESOLUTION = 2**31 - 1


def uniforms(
    sample_ids: torch.Tensor, count: int, *, stream: Stream, seed: int, step: int = 0
) -> torch.Tensor:
    """Uniform numbers in [0, 1) that depend on their logical coordinates alone.

    Parameters
    ----------
    sample_ids : torch.Tensor
        Coordinate of each row, int64 [B].
    count : int
        Numbers per row.
    stream : Stream
        Which use this is.
    seed, step : int
        Coordinates, as in `ggm_kernels.random_tokens`.

    Returns
    -------
    torch.Tensor
        float64 [B, count], multiples of 1 / (2**31 - 1).
    """
    draws = random_tokens(sample_ids, count, _RESOLUTION, stream=stream, seed=seed, step=step)
    return draws.to(torch.float64) / _RESOLUTION


def integers(values: torch.Tensor, high: int) -> torch.Tensor:
    """Map uniform numbers in [0, 1) to int64 in [0, high)."""
    return (values * high).long()
