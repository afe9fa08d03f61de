"""Configuration of a small VQModel and its training: no torch is needed to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ggm.config import allow

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
            allow(self, name, getattr(self, name) >= 1, "1 or more")
        allow(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0, finite")
        allow(self, "seed", 0 <= self.seed < 2**64, "0 to 2**64 - 1")
        by = self.downsampling
        allow(self, "downsampling", by >= 1 and by & (by - 1) == 0, "powers of 2")
        allow(self, "size", self.size % by == 0, f"multiples of downsampling {by}")
        allow(self, "width", self.width >= 1 and self.width % GROUPS == 0, f"multiples of {GROUPS}")
