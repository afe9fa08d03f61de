"""A transformer whose output at a position reads the tokens on both sides of it, but not its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from ggm.backbones.attention import attend
from ggm.backbones.layers import (
    KEEP_FEATURES,
    TIME_FEATURES,
    AdaptiveNorm,
    Modulation,
    Size,
    TransformerConfig,
    blocks_of,
    cosine_features,
    mlp,
    rotate,
    take,
    time_network,
)
from ggm.backbones.transformer import Transformer
from ggm.config import allow


@dataclass(frozen=True)
class _Mixing(Size):
    """A field between those of `Size` and the others: what is given by position stays where it was."""

    mixing: int = 2


@dataclass(frozen=True)
class HollowConfig(TransformerConfig, _Mixing):
    """Size and make of the hollow transformer.

    Attributes
    ----------
    width, heads : int
        Hidden size d, attention heads.
    depth : int
        Blocks of each of the two streams.
    mixing : int
        Layers that mix the streams.
    mlp_ratio : float
        Size of the MLPs' hidden layers relative to `width`.
    positions : str
        "learned" (an embedding per position), "rotary" (rotations per axis of `grid`) or "both".
    grid : tuple of int or None
        Extents of the axes for rotary positions, (height, width) for images; None is one axis.
    tied : bool
        Whether the head's weight is the token embedding.
    attention : str
        "sdpa" or "flash", in the streams. The mixing layers have a mask that flash-attn does not
        know, and always run on "sdpa".
    kind : str
        Tells it from other networks in a file.
    """

    depth: int = 3
    kind: Literal["hollow"] = "hollow"

    gives_all_conditionals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        allow(self, "mixing", self.mixing >= 1, "1 or more")


class HollowTransformer(Transformer):
    """Hidden states of all leave-one-out conditionals in one pass.

    A causal stream of blocks runs over x_0, x_1, .. and an anti-causal one over x_{L-1}, x_{L-2},
    ... Shifted by one, their states at position i tell of x_{<i} and of x_{>i}. Mixing layers
    update a state per position that starts from these two and attends to the shifted states of
    positions up to i in the causal stream and from i on in the other, never to another position's
    mixed state. So output i is a function of the tokens at all positions but i, and its arithmetic
    does not touch x_i: the independence holds to the bit. What the network is told besides the tokens
    is as in `MaskedTransformer`; output i may depend on the keep probability of i itself.

    Parameters
    ----------
    config : HollowConfig
        Size and make.
    vocab_size, length : int
        V and L.

    Notes
    -----
    Source: the requirement is of arXiv 2405.17035 (a classifier that is read at every token of one
    context); two shifted streams are common for it (the hollow transformers of arXiv 2211.16750). This
    way to mix them is our own.
    """

    def __init__(self, config: HollowConfig, vocab_size: int, length: int) -> None:
        super().__init__(config, vocab_size, length)
        width = config.width
        self.time = time_network(width)
        self.earlier, self.later = (_Stream(config) for _ in range(2))
        self.merge = nn.Linear(2 * width, width)
        self.mixers = nn.ModuleList(_Mixer(config) for _ in range(config.mixing))
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
            Noisy tokens, integer [B, L]. Output i does not depend on token i, to the bit.
        positions : torch.Tensor or None
            Positions to predict, int64 [B, K]; None is all. The streams run over all tokens in any
            case; mixing layers and head are saved at the others.
        time : torch.Tensor
            Chain time t / T in [0, 1], float [B].
        keep_prob : torch.Tensor
            Probability of each position to hold data, float [B, L].

        Returns
        -------
        torch.Tensor
            float [B, K or L, width].
        """
        dtype = self.bias.dtype
        place = self.keep(cosine_features(keep_prob, KEEP_FEATURES).to(dtype))
        if self.position is not None:
            place = place + self.position
        condition = self.time(cosine_features(time, TIME_FEATURES).to(dtype))
        x = self.token(tokens) + place
        back = None if self.turns is None else self.turns.flip(0)
        earlier = shifted(self.earlier(x, condition, self.turns))
        later = shifted(self.later(x.flip(1), condition, back)).flip(1)
        asking = torch.cat([earlier, later], dim=-1)
        if positions is not None:
            place, asking = take(place, positions), take(asking, positions)
        x = self.merge(asking) + place
        queries, keys = self._mixing_turns(positions)
        seen = _seen(positions, tokens.shape[1], tokens.device)
        for mixer in self.mixers:
            x = mixer(x, earlier, later, condition, queries, keys, seen)
        return self.norm(x, *self.modulation(condition))

    def _mixing_turns(
        self, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Turns of queries [1 or B, K, 1, 2D] and of the keys [1, 2L, 1, 2D] of both streams."""
        if self.turns is None:
            return None, None
        queries = self.turns[None] if positions is None else self.turns[positions]
        # A shifted state is found where the last token that it has read was.
        keys = torch.cat([self.turns.roll(1, 0), self.turns.roll(-1, 0)])
        return queries, keys[None]


def shifted(states: torch.Tensor) -> torch.Tensor:
    """States [B, L + 1, width] after 0, 1, .., L tokens, at the positions that they may be shown to."""
    return states[:, :-1]


def _seen(positions: torch.Tensor | None, length: int, device: torch.device) -> torch.Tensor:
    """Which shifted states of the two streams a position sees, bool [1 or B, 1, K, 2L]."""
    slots = torch.arange(length, device=device)
    asking = slots[None, None, :, None] if positions is None else positions[:, None, :, None]
    return torch.cat([slots <= asking, slots >= asking], dim=-1)


class _Stream(nn.Module):
    """Causal blocks, and the state before the first token."""

    def __init__(self, config: HollowConfig) -> None:
        super().__init__()
        width = config.width
        self.start = nn.Parameter(0.5 * torch.randn(width))
        self.blocks = blocks_of(config, causal=True)
        self.modulation = Modulation(width, 2)
        self.norm = AdaptiveNorm(width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, turns: torch.Tensor | None) -> torch.Tensor:
        """States after 0, 1, .., L of the tokens x [B, L, width]: [B, L + 1, width]."""
        for block in self.blocks:
            x = block(x, condition, turns)
        x = torch.cat([self.start.expand(x.shape[0], 1, -1), x], dim=1)
        return self.norm(x, *self.modulation(condition))


class _Mixer(nn.Module):
    """Attention of positions to the states of both streams, then an MLP, each in a gated residual."""

    def __init__(self, config: HollowConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.modulation = Modulation(width, 6)
        self.norm = AdaptiveNorm(width)
        self.query = nn.Linear(width, width)
        self.earlier, self.later = (nn.Linear(width, 2 * width) for _ in range(2))
        self.output = nn.Linear(width, width)
        self.mlp = mlp(width, config.mlp_ratio)

    def forward(
        self,
        x: torch.Tensor,
        earlier: torch.Tensor,
        later: torch.Tensor,
        condition: torch.Tensor,
        query_turns: torch.Tensor | None,
        key_turns: torch.Tensor | None,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """Update x [B, K, width] from the shifted states of both streams, [B, L, width] each."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        query = self.query(self.norm(x, shift1, scale1)).unflatten(-1, (self.heads, -1))
        both = torch.cat([self.earlier(earlier), self.later(later)], dim=1)
        key, value = both.unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        if query_turns is not None and key_turns is not None:
            query, key = rotate(query, query_turns), rotate(key, key_turns)
        x = x + gate1 * self.output(attend(query, key, value, "sdpa", mask=seen).flatten(2))
        return x + gate2 * self.mlp(self.norm(x, shift2, scale2))
