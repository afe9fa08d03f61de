"""Handwritten digits, 8 by 8 pixels, that come with scikit-learn: no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ggm.extras import require

SIDE = 8
_BRIGHTEST = 16
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images as tokens, row by row: int64 [N, 64], values 0 (background) to levels - 1."""

    train: torch.Tensor
    held_out: torch.Tensor
    levels: int


def load_digits(levels: int = 4, held_out: int = 360) -> Digits:
    """The 1797 digits of scikit-learn (UCI optical recognition test set), quantised and split.

    Parameters
    ----------
    levels : int
        Grey levels, the vocabulary: 2 to 17.
    held_out : int
        Images kept for evaluation; the split is always the same.

    Returns
    -------
    Digits
        Training and held-out images.

    Raises
    ------
    ValueError
        If `levels` or `held_out` is out of range.
    MissingExtraError
        If scikit-learn is not installed.
    """
    if not 2 <= levels <= _BRIGHTEST + 1:
        raise ValueError(f"levels: got {levels}; allowed: 2 to {_BRIGHTEST + 1}")
    pixels = require("sklearn.datasets", extra="demo").load_digits().data
    grey = torch.from_numpy(pixels).round().long()
    if not 1 <= held_out < len(grey):
        raise ValueError(f"held_out: got {held_out}; allowed: 1 to {len(grey) - 1}")
    tokens = grey * levels // (_BRIGHTEST + 1)
    shuffled = torch.randperm(len(grey), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    tokens = tokens[shuffled]
    return Digits(train=tokens[held_out:], held_out=tokens[:held_out], levels=levels)
