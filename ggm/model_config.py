"""Configuration of a model: chain, network, objective, noise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ggm.backbones import BackboneConfig, MaskedConfig
from ggm.chain import ChainConfig
from ggm.config import build
from ggm.objective import ObjectiveConfig


@dataclass(frozen=True)
class GGMConfig:
    """A model: everything but its weights.

    Attributes
    ----------
    vocab_size : int
        Tokens V.
    chain : ChainConfig
        Length, sweeps, schedule and visit order.
    backbone : MaskedConfig or HollowConfig
        The network.
    objective : ObjectiveConfig
        The loss.
    masked_counts : tuple of int
        Positions K that a training pass predicts; training steps take turns. For a masked network a
        sampler that resamples K sites per step needs K among them. A hollow network learns exact
        conditionals whatever K is; L costs it little more than 1.
    frozen_share : float
        Share of training sequences in which a random set of positions is left clean, as in
        infilling.
    noise_probs : tuple of float or None
        Law pi of the noise, one probability per token; None is uniform.
    """

    vocab_size: int
    chain: ChainConfig
    backbone: BackboneConfig = field(default_factory=MaskedConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masked_counts: tuple[int, ...] = (1,)
    frozen_share: float = 0.0
    noise_probs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size: got {self.vocab_size}; allowed: 1 or more")
        if not self.masked_counts or not all(1 <= k <= self.chain.length for k in self.masked_counts):
            raise ValueError(f"masked_counts: got {self.masked_counts}; allowed: 1 to {self.chain.length}")
        if not 0.0 <= self.frozen_share <= 1.0:
            raise ValueError(f"frozen_share: got {self.frozen_share}; allowed: [0, 1]")

    @property
    def least_sites(self) -> int:
        """Fewest sites per step that the network has learnt to resample together."""
        return 1 if self.backbone.gives_all_conditionals else min(self.masked_counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, numbers and strings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GGMConfig:
        """Inverse of `to_dict`; lists serve for tuples, as JSON has them."""
        return build(cls, values)
