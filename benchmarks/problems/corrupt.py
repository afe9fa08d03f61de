"""Noise for a batch of sequences: inputs, what PyTorch users write, and copying the same bytes."""

import torch

VOCAB_SIZE = 50257
Noised = tuple[torch.Tensor, torch.Tensor]


def make_inputs(size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCAB_SIZE, size, device=device)
    return tokens, torch.rand(size[0], device=device)


def eager(tokens: torch.Tensor, keep_prob: torch.Tensor, probs: torch.Tensor | None = None) -> Noised:
    """The op as PyTorch users write it."""
    keep_prob = keep_prob if keep_prob.dim() == 2 else keep_prob[:, None]
    is_signal = torch.rand(tokens.shape, device=tokens.device) < keep_prob
    if probs is None:
        noise = torch.randint(VOCAB_SIZE, tokens.shape, device=tokens.device, dtype=tokens.dtype)
    else:
        noise = torch.multinomial(probs, tokens.numel(), replacement=True).view(tokens.shape)
    return torch.where(is_signal, tokens, noise), is_signal


def eager_masking(tokens: torch.Tensor, keep_prob: torch.Tensor, mask_id: int) -> Noised:
    """Masking as PyTorch users write it."""
    is_signal = torch.rand(tokens.shape, device=tokens.device) < keep_prob[:, None]
    return torch.where(is_signal, tokens, mask_id), is_signal


def copy(tokens: torch.Tensor) -> Noised:
    """The bytes that no version can avoid: tokens in, tokens and one bool out, newly allocated."""
    return tokens.clone(), torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device).fill_(True)
