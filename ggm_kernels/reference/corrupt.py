"""Reference of `corrupt`."""

from __future__ import annotations

import torch

from ggm_kernels.reference import philox


def corrupt(
    tokens: torch.Tensor,
    keep_prob: torch.Tensor,
    vocab_size: int,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
    noise_table: torch.Tensor | None,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep token i of sequence b with probability keep_prob[b, i], else draw it from the noise law."""
    batch, length = tokens.shape
    if sample_ids is None:
        sample_ids = torch.arange(batch, device=tokens.device)
    decide, draw = philox.token_words(stream, seed, step, sample_ids, length)
    if keep_prob.dim() == 1:
        keep_prob = keep_prob[:, None]
    is_signal = decide < (keep_prob.double() * 2.0**32).long()
    if frozen is not None:
        is_signal = is_signal | frozen
    noise = draw * vocab_size >> 32
    if noise_table is not None:
        accept = philox.acceptance_words(stream, seed, step, sample_ids, length)
        threshold, alias = noise_table[noise].long().unbind(-1)
        noise = torch.where(accept < (threshold & 0xFFFFFFFF), noise, alias)
    return torch.where(is_signal, tokens, noise.to(tokens.dtype)), is_signal
