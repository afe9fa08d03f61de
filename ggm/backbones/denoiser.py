"""A plain bidirectional transformer that sees all tokens and predicts the data at all positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ggm.backbones.layers import (
    TIME_FEATURES,
    TransformerConfig,
    blocks_of,
    cosine_features,
    through,
    time_network,
)
from ggm.backbones.transformer import Transformer


@dataclass(frozen=True)
class DenoiserConfig(TransformerConfig):
    """Size and make of the denoiser, which predicts the data (`GGMConfig.predicts`).

    Attributes
    ----------
    width, depth, heads : int
        Hidden size d, number of blocks, attention heads.
    mlp_ratio : float
        Size of the MLP's hidden layer relative to `width`.
    positions : str
        "learned" (an embedding per position), "rotary" (rotations per axis of `grid`) or "both".
    grid : tuple of int or None
        Extents of the axes for rotary positions, (height, width) for images; None is one axis.
    tied : bool
        Whether the head's weight is the token embedding.
    attention : str
        "sdpa" or "flash" (`ggm.backbones.attention`).
    kind : str
        Tells it from other networks in a file.
    """

    kind: Literal["denoiser"] = "denoiser"

    gives_all_conditionals: ClassVar[bool] = True
    sees_own_token: ClassVar[bool] = True


class DenoiserTransformer(Transformer):
    """Hidden states of the data token's distribution given all noisy tokens, its own among them.

    The network is told how likely each token is to be data; the chain time, which follows, it is not.

    Parameters
    ----------
    config : DenoiserConfig
        Size and make.
    vocab_size, length : int
        V and L.
    """

    def __init__(self, config: DenoiserConfig, vocab_size: int, length: int) -> None:
        super().__init__(config, vocab_size, length)
        self.level = time_network(config.width)
        self.blocks = blocks_of(config)
        self._add_head(config, length)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        time: torch.Tensor,
        keep_prob: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states at some positions, or at all.

        Parameters
        ----------
        tokens : torch.Tensor
            Noisy tokens, integer [B, L], all of which every output sees.
        positions : torch.Tensor or None
            Positions to predict, int64 [B, K]; None is all.
        time : torch.Tensor
            As other networks take it; `keep_prob` tells more.
        keep_prob : torch.Tensor
            Probability of each token to be data, float [B, L].

        Returns
        -------
        torch.Tensor
            float [B, K or L, width].
        """
        x = self._placed(self.token(tokens), keep_prob)
        condition = self.level(cosine_features(keep_prob.mean(dim=1), TIME_FEATURES).to(self.bias.dtype))
        x = through(self.blocks, x, condition, self.turns, positions)
        return self.norm(x, *self.modulation(condition))
