"""Sequences kept for evaluation: drawn at random, or the first ones."""

from __future__ import annotations

import random
from typing import Literal

import torch

from ggm.data.batches import Tokens

HeldOutBy = Literal["random", "first"]


def split(tokens: Tokens, count: int, by: HeldOutBy = "random") -> tuple[torch.Tensor, Tokens]:
    """Sequences for evaluation, int64 [count, L], and all others, in their order.

    Random ones are always the same ones of equally many sequences.

    Raises
    ------
    ValueError
        If the count is below 1, or leaves nothing to train on.
    """
    check_held_out(count, len(tokens))
    ids = range(count) if by == "first" else sorted(random.Random(0).sample(range(len(tokens)), count))
    kept = torch.tensor(ids)
    return tokens[kept], _Others(tokens, kept)


def check_held_out(held_out: int, count: int) -> None:
    """Refuse to hold out nothing, or everything."""
    if not 1 <= held_out < count:
        raise ValueError(f"data.held_out: got {held_out} of {count} sequences; allowed: 1 and more, not all")


class _Others:
    """All sequences but some."""

    def __init__(self, tokens: Tokens, left_out: torch.Tensor) -> None:
        self._tokens, self._count = tokens, len(tokens) - len(left_out)
        # How many of the others come before each one that is left out.
        self._before = left_out - torch.arange(len(left_out))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        return self._tokens[ids + torch.searchsorted(self._before, ids, right=True)]
