"""What every system of the bench is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ggm.backbones.layers import TransformerConfig


@dataclass(frozen=True)
class Shape:
    """What is modelled, and by how large a network.

    Attributes
    ----------
    length, vocab_size : int
        L and V.
    size : TransformerConfig
        Of the plain network. Other networks are made of as many blocks.
    given_share : float
        Share of training sequences in which some positions are clean, for infilling.
    """

    length: int
    vocab_size: int
    size: TransformerConfig
    given_share: float = 0.0


@dataclass(frozen=True)
class Request:
    """Samples that are wanted.

    Attributes
    ----------
    count : int
        How many.
    sampler : str
        One of the system's.
    evaluations : int
        Steps, each of one network evaluation.
    temperature : float
        Divides the logits of tokens that are drawn.
    seed : int
        Of all draws.
    tokens, given : torch.Tensor, optional
        int64 and bool [count, L]: positions to be kept, for infilling.
    """

    count: int
    sampler: str
    evaluations: int
    temperature: float = 1.0
    seed: int = 0
    tokens: torch.Tensor | None = None
    given: torch.Tensor | None = None

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """Pure noise, with what is given in it; a new tensor."""
        if self.tokens is None or self.given is None:
            return noise.clone()
        return torch.where(self.given, self.tokens, noise)


@dataclass(frozen=True)
class Drawn:
    """Samples int64 [count, L], and the mean number of network evaluations that one of them took."""

    tokens: torch.Tensor
    evaluations: float


class System(Protocol):
    """A generative model with its loss and its samplers. It is an `nn.Module`, too."""

    samplers: tuple[str, ...]

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor: ...

    def sample(self, request: Request) -> Drawn: ...

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """Evaluations that a sampler makes if asked for about so many; None if it cannot come near."""
        ...

    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """Estimates of an upper bound of -log p, in nats per sequence, float64 [B]."""
        ...


def timed(call: Callable[[], Drawn], device: torch.device) -> tuple[Drawn, float]:
    """Samples, and the seconds that they took: of the processor on a CPU."""
    started = clock(device)
    drawn = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return drawn, clock(device) - started


def clock(device: torch.device) -> float:
    """Seconds of the processor on a CPU, where other programs must not count; else of the wall.

    With one thread, processor time on an idle machine is the time of the wall.
    """
    return time.process_time() if device.type == "cpu" else time.perf_counter()
