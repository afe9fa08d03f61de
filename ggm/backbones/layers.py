"""Configuration and layers that the backbones share: features, positions, transformer block with adaLN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ggm.backbones.attention import IMPLEMENTATIONS, attend, check_installed
from ggm.config import allow

TIME_FEATURES = 32
KEEP_FEATURES = 16
POSITIONS = ("learned", "rotary", "both")


@dataclass(frozen=True)
class Size:
    """What comes first in a configuration: hidden size d and number of blocks."""

    width: int = 128
    depth: int = 4


@dataclass(frozen=True)
class TransformerConfig(Size):
    """What the configurations of all transformers have in common."""

    heads: int = 4
    mlp_ratio: float = 4.0
    positions: str = "learned"
    grid: tuple[int, ...] | None = None
    tied: bool = False
    attention: str = "sdpa"

    # Whether one pass gives the conditionals of all positions, and whether each has seen its own token.
    gives_all_conditionals: ClassVar[bool] = False
    sees_own_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        width, heads, ratio, grid = self.width, self.heads, self.mlp_ratio, self.grid
        if heads < 1:
            raise ValueError(f"heads: got {heads}; allowed: 1 or more")
        if width < 1 or width % heads:
            raise ValueError(f"width: got {width}; allowed: multiples of heads = {heads}")
        if not 1.0 <= ratio * width < math.inf:
            raise ValueError(f"mlp_ratio: got {ratio}; allowed: 1 / width = {1 / width:g} and more, finite")
        if grid is not None and (not grid or min(grid) < 1):
            raise ValueError(f"grid: got {grid}; allowed: extents of 1 or more")
        allow(self, "positions", self.positions in POSITIONS, POSITIONS)
        allow(self, "attention", self.attention in IMPLEMENTATIONS, IMPLEMENTATIONS)
        allow(self, "depth", self.depth >= 1, "1 or more")

    def check_length(self, length: int) -> None:
        """Raise ValueError if the grid has another number of positions, or heads cannot be turned on it."""
        grid = self.grid or (length,)
        if math.prod(grid) != length:
            raise ValueError(f"grid: got {grid}; allowed: extents whose product is {length}")
        size, parts = self.width // self.heads, 2 * len(grid)
        if self.positions != "learned" and size % parts:
            raise ValueError(
                f"width: got {self.width}, heads of {size}, with positions {self.positions!r} on {len(grid)} "
                f"axes; allowed: heads of multiples of {parts}"
            )


def initialise(
    token: nn.Embedding,
    beside: tuple[nn.Parameter | None, ...],
    head: nn.Parameter | None,
    bias: nn.Parameter,
) -> None:
    """Start embeddings and head: g is the uniform distribution, so the calibration sum starts at 1.

    Parameters
    ----------
    token : nn.Embedding
        Of V tokens; the head's weight, too, if there is no head.
    beside : tuple of nn.Parameter or None
        What is added to embeddings or stands in their place, where there is any.
    head, bias : nn.Parameter
        [V, width] or None, and [V].
    """
    vocab_size, width = token.weight.shape
    # A tied embedding is the head's weight, too: logits of order 1.
    nn.init.normal_(token.weight, std=width**-0.5 if head is None else 0.5)
    for values in beside:
        if values is not None:
            nn.init.normal_(values, std=0.5)
    if head is not None:
        nn.init.zeros_(head)
    nn.init.constant_(bias, -math.log(vocab_size))


def cosine_features(values: torch.Tensor, count: int) -> torch.Tensor:
    """Features cos(pi k v), k = 0..count - 1, of v in [0, 1]: [...] to float32 [..., count]."""
    frequencies = math.pi * torch.arange(count, device=values.device)
    return torch.cos(values.to(torch.float32)[..., None] * frequencies)


def rotary_turns(grid: tuple[int, ...], head_size: int, base: float = 100.0) -> torch.Tensor:
    """Rotations of every position of a grid; each axis turns its own share of a head.

    Parameters
    ----------
    grid : tuple of int
        Extent of each axis, row-major: (L,) for text, (height, width) for images.
    head_size : int
        Size of a head, a multiple of twice the number of axes.
    base : float
        Ratio of the fastest to the slowest rotation.

    Returns
    -------
    torch.Tensor
        float32 [L, 1, 2 * head_size]: cosines, then sines, as `rotate` wants them. Angles would not
        survive a model's cast to half precision.

    Raises
    ------
    ValueError
        If the head cannot be shared out among the axes.
    """
    if head_size % (2 * len(grid)):
        raise ValueError(f"head size: got {head_size}; allowed: multiples of {2 * len(grid)}")
    pairs = head_size // (2 * len(grid))
    rates = base ** (-torch.arange(pairs) / pairs)
    axes = torch.meshgrid(*(torch.arange(extent) for extent in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in axes]
    half = torch.cat(angles, dim=1).to(torch.float32)
    # Those of the first half of a head are negative.
    angles_of_heads = torch.cat([-half, half], dim=1)[:, None]
    return torch.cat([angles_of_heads.cos(), angles_of_heads.sin()], dim=-1)


def position_turns(config: TransformerConfig, length: int) -> torch.Tensor | None:
    """`rotary_turns` of a sequence of `length`, or None where positions are only learned.

    Raises
    ------
    ValueError
        As `TransformerConfig.check_length`.
    """
    config.check_length(length)
    if config.positions == "learned":
        return None
    return rotary_turns(config.grid or (length,), config.width // config.heads)


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs (c, c + D / 2) of heads [B, L, heads, D] by turns [1 or B, L, 1, 2 D].

    Computed in the wider of both dtypes; the result has that of `heads`, as attention wants it.
    """
    half = heads.shape[-1] // 2
    cosines, sines = turns.chunk(2, dim=-1)
    # (x, y) -> (x cos - y sin, y cos + x sin): the sines of the first half carry the minus sign.
    rotated = torch.addcmul(heads * cosines, heads.roll(half, dims=-1), sines)
    return rotated.to(heads.dtype)


def time_network(width: int) -> nn.Sequential:
    """From `TIME_FEATURES` features of the chain time to the condition of adaLN, of size `width`."""
    return nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def mlp(width: int, ratio: float) -> nn.Sequential:
    """Two layers with a hidden one of ``ratio * width``."""
    hidden = int(ratio * width)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class Modulation(nn.Module):
    """adaLN: shifts, scales and gates from a condition, all 0 at the start."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.project = nn.Linear(width, parts * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Condition [B, width] to `parts` tensors [B, 1, width]."""
        return self.project(condition)[:, None].chunk(self.parts, dim=-1)


class AdaptiveNorm(nn.Module):
    """Layer norm whose shift and scale come from outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Normalise x [B, L, width]."""
        return torch.addcmul(shift, self.norm(x), 1.0 + scale)


class Block(nn.Module):
    """Transformer block with adaLN: attention, then an MLP, each in a gated residual."""

    def __init__(self, config: TransformerConfig, causal: bool = False) -> None:
        super().__init__()
        check_installed(config.attention)
        width = config.width
        self.heads, self.attention, self.causal = config.heads, config.attention, causal
        self.modulation = Modulation(width, 6)
        self.norm = AdaptiveNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.mlp = mlp(width, config.mlp_ratio)

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor,
        turns: torch.Tensor | None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Update all positions, or only those given, from all.

        Parameters
        ----------
        x : torch.Tensor
            float [B, L, width].
        condition : torch.Tensor
            float [B, width].
        turns : torch.Tensor, optional
            Of `rotary_turns`.
        positions : torch.Tensor, optional
            int64 [B, K]: the only positions wanted. The last block of a network saves the others.
            Not in a causal block.

        Returns
        -------
        torch.Tensor
            float [B, L or K, width].
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        normed = self.norm(x, shift1, scale1)
        asking = normed
        if positions is not None:
            x, asking = take(x, positions), take(normed, positions)
        x = x + gate1 * self._attend(asking, normed, turns, positions)
        return x + gate2 * self.mlp(self.norm(x, shift2, scale2))

    def _attend(
        self,
        asking: torch.Tensor,
        answering: torch.Tensor,
        turns: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(answering).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        if turns is not None:
            query = rotate(query, turns[None] if positions is None else turns[positions])
            key = rotate(key, turns[None])
        mixed = attend(query, key, value, self.attention, causal=self.causal)
        return self.output(mixed.flatten(2))


def blocks_of(config: TransformerConfig, *, causal: bool = False) -> nn.ModuleList:
    """The blocks of a stack, bottom first."""
    return nn.ModuleList(Block(config, causal) for _ in range(config.depth))


def through(
    blocks: nn.ModuleList,
    x: torch.Tensor,
    condition: torch.Tensor,
    turns: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """X [B, L, width] behind all blocks, at `positions` [B, K] or at all: arguments as of `Block`."""
    *most, last = blocks
    for block in most:
        x = block(x, condition, turns)
    return last(x, condition, turns, positions)


def take(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of x [B, L, width] at positions [B, K]: [B, K, width]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
