"""Noise tokens from random words, as every op that noises draws them."""

from __future__ import annotations

import torch

from ggm_kernels.reference import philox


def noise_tokens(
    draw: torch.Tensor,
    stream: int,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor,
    vocab_size: int,
    noise_table: torch.Tensor | None,
    mask_id: int | None,
) -> torch.Tensor:
    """Tokens of the noise law from the second of the `token_words` of each position, int64 [B, L]."""
    if mask_id is not None:
        return torch.full_like(draw, mask_id)
    column = draw * vocab_size >> 32
    if noise_table is None:
        return column
    accept = philox.acceptance_words(stream, seed, step, sample_ids, draw.shape[1])
    threshold, alias = noise_table[column].long().unbind(-1)
    return torch.where(accept < (threshold & 0xFFFFFFFF), column, alias)
