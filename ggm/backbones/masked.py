"""A transformer that is shown a mask token at the positions that it must predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

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
class MaskedConfig(TransformerConfig):
    """Size and make of the masked transformer.

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

    kind: Literal["masked"] = "masked"


class MaskedTransformer(Transformer):
    """Hidden states at masked positions, blind to the tokens there.

    Besides the tokens the network is told the chain time (adaLN) and, for every position, how
    likely its token is to be data: within a sweep positions differ in it, and frozen positions are
    certain.

    Parameters
    ----------
    config : MaskedConfig
        Size and make.
    vocab_size, length : int
        V and L.
    """

    def __init__(self, config: MaskedConfig, vocab_size: int, length: int) -> None:
        super().__init__(config, vocab_size, length)
        self.mask = nn.Parameter(torch.empty(config.width))
        self.time = time_network(config.width)
        self.blocks = blocks_of(config)
        self._add_head(config, length, self.mask)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        time: torch.Tensor,
        keep_prob: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states at the masked positions.

        Parameters
        ----------
        tokens : torch.Tensor
            Noisy tokens, integer [B, L]. What stands at `positions` has no influence, to the bit.
        positions : torch.Tensor
            Positions to mask and to predict, int64 [B, K].
        time : torch.Tensor
            Chain time t / T in [0, 1], float [B].
        keep_prob : torch.Tensor
            Probability of each position to hold data, float [B, L].

        Returns
        -------
        torch.Tensor
            float [B, K, width].
        """
        masked = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        masked = masked.scatter(1, positions, True)[..., None]
        dtype = self.mask.dtype
        x = torch.where(masked, self.mask, self.token(tokens))
        x = self._placed(x, keep_prob)
        condition = self.time(cosine_features(time, TIME_FEATURES).to(dtype))
        x = through(self.blocks, x, condition, self.turns, positions)
        return self.norm(x, *self.modulation(condition))
