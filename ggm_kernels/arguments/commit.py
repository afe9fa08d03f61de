"""What a commit accepts, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Choice:
    """What is accepted and what becomes of the rest: checked arguments, as backends get them.

    A limit is None, a number, or a tensor [] or [B]: int64 `count`, float32 `threshold` and `budget`. `step`
    is an int or a 0-d int64 tensor; the rest as in `commit`.
    """

    count: int | torch.Tensor | None
    threshold: float | torch.Tensor | None
    budget: float | torch.Tensor | None
    eligible: torch.Tensor | None
    noises_rest: bool
    noise_table: torch.Tensor | None
    mask_id: int | None
    vocab_size: int
    seed: int
    step: int | torch.Tensor
    sample_ids: torch.Tensor | None
    accepted: torch.Tensor | None
