"""The rivals' network: a plain transformer of the layers that GGM's networks are made of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from ggm.backbones.layers import (
    KEEP_FEATURES,
    TIME_FEATURES,
    AdaptiveNorm,
    Modulation,
    TransformerConfig,
    blocks_of,
    cosine_features,
    initialise,
    position_turns,
    time_network,
)


class PlainTransformer(nn.Module):
    """Logits at every position, from the tokens at all of them, its own included; or from those up to it.

    Parameters
    ----------
    config : TransformerConfig
        Size and make.
    inputs, outputs : int
        Tokens that it reads (a mask or a start token may be among them), and tokens that it predicts.
    length : int
        L.
    causal : bool
        Whether position i reads positions up to i only.
    """

    def __init__(
        self, config: TransformerConfig, inputs: int, outputs: int, length: int, *, causal: bool = False
    ) -> None:
        super().__init__()
        width = config.width
        turns = position_turns(config, length)
        self.token = nn.Embedding(inputs, width)
        self.keep = nn.Linear(KEEP_FEATURES, width)
        self.position = nn.Parameter(torch.empty(length, width)) if config.positions != "rotary" else None
        self.time = time_network(width)
        self.blocks = blocks_of(config, causal=causal)
        self.modulation = Modulation(width, 2)
        self.norm = AdaptiveNorm(width)
        self.head = nn.Parameter(torch.empty(outputs, width))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.turns: torch.Tensor | None
        self.register_buffer("turns", turns, persistent=False)
        initialise(self.token, (self.position,), None, self.bias)
        nn.init.zeros_(self.head)
        nn.init.normal_(self.token.weight, std=0.5)

    def forward(
        self, tokens: torch.Tensor, time: torch.Tensor | None = None, keep_prob: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits float [B, L, outputs] of tokens [B, L].

        `time` in [0, 1], [B], and the probability of each position to hold data, [B, L], are told as to GGM's
        networks; a system whose network needs neither gives None.
        """
        x = self.token(tokens)
        time = tokens.new_zeros(len(tokens), dtype=torch.float32) if time is None else time
        keep_prob = torch.ones(tokens.shape, device=tokens.device) if keep_prob is None else keep_prob
        x = x + self.keep(cosine_features(keep_prob, KEEP_FEATURES))
        if self.position is not None:
            x = x + self.position
        condition = self.time(cosine_features(time, TIME_FEATURES))
        for block in self.blocks:
            x = block(x, condition, self.turns)
        return linear(self.norm(x, *self.modulation(condition)), self.head, self.bias)
