"""What every system is asked for, and all systems by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ggm.backbones.layers import TransformerConfig
from ggm.objective import ObjectiveConfig


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


def timed(call: Callable[[], Drawn]) -> tuple[Drawn, float]:
    """Samples, and the seconds that they took."""
    started = time.perf_counter()
    drawn = call()
    if drawn.tokens.is_cuda:
        torch.cuda.synchronize()
    return drawn, time.perf_counter() - started


def make_system(name: str, shape: Shape) -> Any:
    """System of a name in `SYSTEMS` or `ABLATIONS`, its weights random."""
    from benchmarks.quality.autoregressive import Autoregressive
    from benchmarks.quality.glauber import Glauber
    from benchmarks.quality.mdlm import MDLM
    from benchmarks.quality.sedd import SEDD
    from benchmarks.quality.uniform import UniformDiffusion

    if name in ABLATIONS:
        return Glauber(shape, "hollow", **ABLATIONS[name])
    makers: dict[str, Callable[[Shape], Any]] = {
        "ggm-hollow": lambda shape: Glauber(shape, "hollow"),
        "ggm-data": lambda shape: Glauber(shape, "hollow", **DATA),
        "ggm-denoiser": lambda shape: Glauber(shape, "denoiser", **DATA),
        "ggm-masked": lambda shape: Glauber(shape, "masked"),
        "mdlm": MDLM,
        "sedd-absorbing": lambda shape: SEDD(shape, "absorbing"),
        "sedd-uniform": lambda shape: SEDD(shape, "uniform"),
        "uniform": UniformDiffusion,
        "autoregressive": Autoregressive,
    }
    return makers[name](shape)


SYSTEMS = (
    "ggm-hollow",
    "ggm-data",
    "ggm-denoiser",
    "ggm-masked",
    "mdlm",
    "sedd-absorbing",
    "sedd-uniform",
    "uniform",
    "autoregressive",
)
# GGM that predicts the data token, by cross-entropy.
DATA: dict[str, Any] = {"predicts": "data", "objective": ObjectiveConfig("cross_entropy")}
# GGM with one thing changed; the name says which. The first is the one that the others are held against.
ABLATIONS: dict[str, dict[str, Any]] = {
    "ggm-hollow": {},
    "sweeps=2": {"sweeps": 2},
    "sweeps=8": {"sweeps": 8},
    "schedule=linear": {"schedule": "linear"},
    "schedule=sine": {"schedule": "sine"},
    "order=reshuffled": {"order": "reshuffled"},
    "order=raster": {"order": "raster"},
    "form=observed": {"objective": ObjectiveConfig("observed")},
    "form=cross_entropy": {"objective": ObjectiveConfig("cross_entropy")},
    "noise_ratio=1": {"objective": ObjectiveConfig("marginal", noise_ratio=1.0)},
    "noise_ratio=1000": {"objective": ObjectiveConfig("marginal", noise_ratio=1000.0)},
}
