"""Configuration of a small VQModel and its training: no torch is needed to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROUPS = 8  # of its group norms


@dataclass(frozen=True)
class VQConfig:
    """A small VQModel and its training. All values are our own choice.

    Attributes
    ----------
    size : int
        Pixels of a side.
    downsampling : int
        Sides of pictures over sides of token grids: a power of 2, of which `size` is a multiple.
    vocab_size : int
        Vectors in the codebook.
    latent_channels : int
        Size of each.
    width : int
        Channels at full size, a multiple of 8; twice as many below.
    grey : bool
        Whether pictures have one channel.
    steps : int
        Optimiser steps.
    batch_size : int
        Pictures per step.
    learning_rate : float
        Peak, of Adam.
    seed : int
        Of weights and of the order of pictures.
    """

    size: int = 64
    downsampling: int = 8
    vocab_size: int = 512
    latent_channels: int = 8
    width: int = 32
    grey: bool = False
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "vocab_size", "latent_channels", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed: 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}; allowed: above 0, finite")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: got {self.seed}; allowed: 0 to 2**64 - 1")
        if self.downsampling < 1 or self.downsampling & (self.downsampling - 1):
            raise ValueError(f"downsampling: got {self.downsampling}; allowed: powers of 2")
        if self.size % self.downsampling:
            raise ValueError(f"size: got {self.size}; allowed: multiples of downsampling {self.downsampling}")
        if self.width < 1 or self.width % GROUPS:
            raise ValueError(f"width: got {self.width}; allowed: multiples of {GROUPS}")
