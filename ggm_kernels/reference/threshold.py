"""Top-k, top-p and min-p of rows, by sorting."""

from __future__ import annotations

import math

import torch


def filtered(
    z: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
    top_p_first: bool,
) -> torch.Tensor:
    """Set to -inf what the filters leave out of rows z [R, V], whose largest is 0.

    Equal logits share one fate. Each filter has a value per row, [R], or is None; min-p comes last.
    """
    filters = [(_top_k, top_k), (_top_p, top_p)]
    for keep_largest, value in reversed(filters) if top_p_first else filters:
        if value is not None:
            z = keep_largest(z, value[:, None])
    if min_p is not None:
        z = z.masked_fill(z < torch.log(min_p.double()).to(torch.float32)[:, None], -math.inf)
    return z


def _top_k(z: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    ordered = z.sort(dim=1, descending=True).values
    return z.masked_fill(z < ordered.gather(1, top_k.clamp_max(z.shape[1]) - 1), -math.inf)


def _top_p(z: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    ordered = z.sort(dim=1, descending=True).values
    probs = ordered.double().softmax(1)
    mass_above = probs.cumsum(1) - probs
    last = (mass_above < top_p).sum(1, keepdim=True) - 1
    smallest = torch.where(top_p < 1, ordered.gather(1, last.clamp_min(0)), -math.inf)
    return z.masked_fill(z < smallest, -math.inf)
