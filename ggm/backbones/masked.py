"""A transformer that is shown a mask token at the positions that it must predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ggm.backbones.layers import (
    KEEP_FEATURES,
    TIME_FEATURES,
    AdaptiveNorm,
    Block,
    Modulation,
    TransformerConfig,
    cosine_features,
    initialise,
    position_turns,
    time_network,
)


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


class MaskedTransformer(nn.Module):
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
        super().__init__()
        width = config.width
        turns = position_turns(config.positions, config.grid, length, width // config.heads)
        self.token = nn.Embedding(vocab_size, width)
        self.mask = nn.Parameter(torch.empty(width))
        self.keep = nn.Linear(KEEP_FEATURES, width)
        self.position = nn.Parameter(torch.empty(length, width)) if config.positions != "rotary" else None
        self.time = time_network(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, width, config.attention) for _ in range(config.depth)
        )
        self.modulation = Modulation(width, width, 2)
        self.norm = AdaptiveNorm(width)
        self.head = None if config.tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.turns: torch.Tensor | None
        self.register_buffer("turns", turns, persistent=False)
        initialise(self.token, (self.mask, self.position), self.head, self.bias)

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
        x = x + self.keep(cosine_features(keep_prob, KEEP_FEATURES).to(dtype))
        if self.position is not None:
            x = x + self.position
        condition = self.time(cosine_features(time, TIME_FEATURES).to(dtype))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, condition, self.turns)
        x = last(x, condition, self.turns, positions)
        return self.norm(x, *self.modulation(condition))

    @property
    def head_weight(self) -> torch.Tensor:
        """Weight of the head, [V, width]: g = hidden @ weight.T + bias."""
        return self.token.weight if self.head is None else self.head

    @property
    def head_bias(self) -> torch.Tensor:
        """Bias of the head, [V]."""
        return self.bias
