"""What diffusion in continuous time shares: noise schedules, training times, given positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from ggm.draws import uniforms
from ggm_kernels import Stream


class Schedule(Protocol):
    """Total noise sigma(t), increasing in t in [0, 1]; a token is still data with probability exp(-sigma)."""

    def sigma(self, time: torch.Tensor) -> torch.Tensor: ...

    def rate(self, time: torch.Tensor) -> torch.Tensor:
        """Derivative of sigma."""
        ...


@dataclass(frozen=True)
class LogLinear:
    """A share 1 - (1 - least) t of the tokens is data (SEDD, MDLM)."""

    least: float = 1e-3

    def sigma(self, time: torch.Tensor) -> torch.Tensor:
        return -torch.log1p(-(1.0 - self.least) * time)

    def rate(self, time: torch.Tensor) -> torch.Tensor:
        return (1.0 - self.least) / (1.0 - (1.0 - self.least) * time)


@dataclass(frozen=True)
class Geometric:
    """sigma = low ** (1 - t) * high ** t (SEDD with uniform noise, from its authors' first to last sigma)."""

    low: float = 1e-4
    high: float = 20.0

    def sigma(self, time: torch.Tensor) -> torch.Tensor:
        return self.low ** (1.0 - time) * self.high**time

    def rate(self, time: torch.Tensor) -> torch.Tensor:
        return self.sigma(time) * math.log(self.high / self.low)


def keep_of(schedule: Schedule, time: torch.Tensor) -> torch.Tensor:
    """Probability alpha = exp(-sigma) that a token is still data."""
    return torch.exp(-schedule.sigma(time))


def training_times(count: int, *, seed: int, step: int, least: float = 1e-3) -> torch.Tensor:
    """Times of a batch, float64 [count], spread evenly over [least, 1] from one random start, then shuffled.

    Even spreading is what MDLM and duo train with: the mean over a batch has less variance.
    """
    draws = uniforms(torch.arange(count + 1), 1, stream=Stream.TIME, seed=seed, step=step)[:, 0]
    places = draws[1:].argsort(stable=True)
    return least + (1.0 - least) * (places + draws[0]) / count


def draw_given(
    sample_ids: torch.Tensor, length: int, share: float, *, seed: int, step: int
) -> torch.Tensor | None:
    """Positions without noise, bool [B, L]: a random share of them in `share` of the sequences, as in GGM."""
    if share == 0.0:
        return None
    draws = uniforms(sample_ids, length + 2, stream=Stream.FROZEN, seed=seed, step=step)
    some = (draws[:, length] < share) * draws[:, length + 1]
    return draws[:, :length] < some[:, None]


def keep_of_positions(keep: torch.Tensor, length: int, given: torch.Tensor | None) -> torch.Tensor:
    """alpha of every position, float [B, L], from that of the sequences [B]; 1 where a token is given."""
    keeps = keep[:, None].expand(-1, length)
    return keeps if given is None else keeps.masked_fill(given, 1.0)
