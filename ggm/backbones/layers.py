"""Layers that the backbones share: features, rotary positions, transformer block with adaLN."""

from __future__ import annotations

import math

import torch
from torch import nn

from ggm.backbones.attention import attend


def cosine_features(values: torch.Tensor, count: int) -> torch.Tensor:
    """Features cos(pi k v), k = 0..count - 1, of v in [0, 1]: [...] to float32 [..., count]."""
    frequencies = math.pi * torch.arange(count, device=values.device)
    return torch.cos(values.to(torch.float32)[..., None] * frequencies)


def rotary_angles(grid: tuple[int, ...], head_size: int, base: float = 100.0) -> torch.Tensor:
    """Rotation angles of every position of a grid; each axis turns its own share of a head.

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
        float32 [L, 1, head_size]: the negative angles, then the angles, as `rotate` wants them.

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
    return torch.cat([-half, half], dim=1)[:, None]


def rotate(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs (c, c + D / 2) of heads [B, L, heads, D] by angles [1 or B, L, 1, D]."""
    half = heads.shape[-1] // 2
    # (x, y) -> (x cos - y sin, y cos + x sin): the angles of the first half carry the minus sign.
    return torch.addcmul(heads * angles.cos(), heads.roll(half, dims=-1), angles.sin())


class Modulation(nn.Module):
    """adaLN: shifts, scales and gates from a condition, all 0 at the start."""

    def __init__(self, condition_size: int, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.project = nn.Linear(condition_size, parts * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Condition [B, C] to `parts` tensors [B, 1, width]."""
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

    def __init__(self, width: int, heads: int, mlp_ratio: float, condition_size: int, attention: str) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.heads, self.attention = heads, attention
        self.modulation = Modulation(condition_size, width, 6)
        self.norm = AdaptiveNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor,
        angles: torch.Tensor | None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Update all positions, or only those given, from all.

        Parameters
        ----------
        x : torch.Tensor
            float [B, L, width].
        condition : torch.Tensor
            float [B, C].
        angles : torch.Tensor, optional
            Of `rotary_angles`.
        positions : torch.Tensor, optional
            int64 [B, K]: the only positions wanted. The last block of a network saves the others.

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
        x = x + gate1 * self._attend(asking, normed, angles, positions)
        return x + gate2 * self.mlp(self.norm(x, shift2, scale2))

    def _attend(
        self,
        asking: torch.Tensor,
        answering: torch.Tensor,
        angles: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(answering).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        if angles is not None:
            query = rotate(query, angles[None] if positions is None else angles[positions])
            key = rotate(key, angles[None])
        return self.output(attend(query, key, value, self.attention).flatten(2))


def take(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of x [B, L, width] at positions [B, K]: [B, K, width]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
