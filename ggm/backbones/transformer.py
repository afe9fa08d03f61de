"""What the networks have in common: embeddings, what they are told of the noise, the head."""

from __future__ import annotations

import torch
from torch import nn

from ggm.backbones.layers import (
    KEEP_FEATURES,
    AdaptiveNorm,
    Modulation,
    TransformerConfig,
    cosine_features,
    initialise,
    position_turns,
)


class Transformer(nn.Module):
    """A network that builds its layers between the embeddings and the head.

    Optimizer states know parameters by their order: it is part of the checkpoint's format.

    Parameters
    ----------
    config : TransformerConfig
        Size and make.
    vocab_size, length : int
        V and L.
    """

    turns: torch.Tensor | None
    position: nn.Parameter | None
    head: nn.Parameter | None

    def __init__(self, config: TransformerConfig, vocab_size: int, length: int) -> None:
        super().__init__()
        turns = position_turns(config, length)
        self.register_buffer("turns", turns, persistent=False)
        self.token = nn.Embedding(vocab_size, config.width)
        self.keep = nn.Linear(KEEP_FEATURES, config.width)

    def _add_head(self, config: TransformerConfig, length: int, mask: nn.Parameter | None = None) -> None:
        """Build what comes last, and start the weights."""
        vocab_size, width = self.token.weight.shape
        self.position = nn.Parameter(torch.empty(length, width)) if config.positions != "rotary" else None
        self.modulation = Modulation(width, 2)
        self.norm = AdaptiveNorm(width)
        self.head = None if config.tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))
        initialise(self.token, (mask, self.position), self.head, self.bias)

    def _placed(self, x: torch.Tensor, keep_prob: torch.Tensor) -> torch.Tensor:
        """Add to x [B, L, width] where it stands and how likely its token is to be data."""
        x = x + self.keep(cosine_features(keep_prob, KEEP_FEATURES).to(self.bias.dtype))
        return x if self.position is None else x + self.position

    @property
    def head_weight(self) -> torch.Tensor:
        """Weight of the head, [V, width]: logits = hidden @ weight.T + bias."""
        return self.token.weight if self.head is None else self.head

    @property
    def head_bias(self) -> torch.Tensor:
        """Bias of the head, [V]."""
        return self.bias
