"""Which times of a chain are looked at: evenly spread, with a random start, so that means are unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ggm.draws import uniforms
from ggm_kernels import Stream


@dataclass(frozen=True)
class EvenTimes:
    """Looks at some of the times of each sequence.

    Attributes
    ----------
    counts : torch.Tensor
        How many times each sequence has, int64 [B].
    looks : int
        How many of them are looked at.
    starts : torch.Tensor
        Where the first look is within its share of the times, float64 [B] in [0, 1).
    """

    counts: torch.Tensor
    looks: int
    starts: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, counts: torch.Tensor, most: int, *, seed: int) -> EvenTimes:
        """At most `most` looks at sequences whose noise has the coordinates `ids`, int64 [B]."""
        looks = min(most, max(1, int(counts.max())))
        return cls(counts, looks, uniforms(ids, 1, stream=Stream.TIME, seed=seed)[:, 0])

    def at(self, look: int) -> torch.Tensor:
        """Times of a look, int64 [B]: each time is looked at with probability ``looks / counts``."""
        index = ((look + self.starts) * self.counts / self.looks).long()
        return torch.minimum(index, (self.counts - 1).clamp_min(0))

    @property
    def weights(self) -> torch.Tensor:
        """What a term of a look counts in the sum over all times, float64 [B]."""
        return self.counts / self.looks
