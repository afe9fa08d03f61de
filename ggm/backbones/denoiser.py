"""A plain bidirectional transformer that sees all tokens and predicts the data at all positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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


class DenoiserTransformer(nn.Module):
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
        super().__init__()
        width = config.width
        turns = position_turns(config.positions, config.grid, length, width // config.heads)
        self.token = nn.Embedding(vocab_size, width)
        self.keep = nn.Linear(KEEP_FEATURES, width)
        self.position = nn.Parameter(torch.empty(length, width)) if config.positions != "rotary" else None
        self.level = time_network(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, width, config.attention) for _ in range(config.depth)
        )
        self.modulation = Modulation(width, width, 2)
        self.norm = AdaptiveNorm(width)
        self.head = None if config.tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.turns: torch.Tensor | None
        self.register_buffer("turns", turns, persistent=False)
        initialise(self.token, (self.position,), self.head, self.bias)

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
        dtype = self.bias.dtype
        x = self.token(tokens) + self.keep(cosine_features(keep_prob, KEEP_FEATURES).to(dtype))
        if self.position is not None:
            x = x + self.position
        condition = self.level(cosine_features(keep_prob.mean(dim=1), TIME_FEATURES).to(dtype))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, condition, self.turns)
        x = last(x, condition, self.turns, positions)
        return self.norm(x, *self.modulation(condition))

    @property
    def head_weight(self) -> torch.Tensor:
        """Weight of the head, [V, width]: logits = hidden @ weight.T + bias."""
        return self.token.weight if self.head is None else self.head

    @property
    def head_bias(self) -> torch.Tensor:
        """Bias of the head, [V]."""
        return self.bias
