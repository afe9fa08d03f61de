"""Reference of `corrupt`."""

from __future__ import annotations

import torch

from ggm_kernels.reference import philox
from ggm_kernels.reference.noise import noise_tokens


def corrupt(
    tokens: torch.Tensor,
    keep_prob: torch.Tensor,
    vocab_size: int,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
    noise_table: torch.Tensor | None,
    mask_id: int | None,
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
    noise = noise_tokens(draw, stream, seed, step, sample_ids, vocab_size, noise_table, mask_id)
    return torch.where(is_signal, tokens, noise.to(tokens.dtype)), is_signal
