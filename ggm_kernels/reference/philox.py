"""Philox4x32-10 in int64 arithmetic: 32-bit words are held in int64 tensors as values 0..2**32 - 1."""

from __future__ import annotations

import torch

from ggm_kernels.randomness import Stream

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# Seed, step, sample ids and positions of rows.
Coordinates = tuple[int | torch.Tensor, int | torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, seed: int | torch.Tensor) -> Words:
    """Four random words per counter.

    Parameters
    ----------
    counter : tuple of four int64 tensors
        Counter words, each in [0, 2**32), of shapes that broadcast together.
    seed : int or int64 tensor
        64-bit key, signed or unsigned, of a shape that broadcasts with the counter's.

    Returns
    -------
    tuple of four int64 tensors
        Random words in [0, 2**32), of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words_at(
    stream: int,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor,
    position_block: torch.Tensor,
    vocab_block: int | torch.Tensor = 0,
) -> Words:
    """Random words at logical coordinates (layout: `ggm_kernels.randomness`) that broadcast, int64."""
    if not isinstance(step, torch.Tensor):
        step = torch.tensor(step, device=sample_ids.device)
    c0 = (sample_ids >> 32 << 24) | (int(stream) << 20) | vocab_block
    return philox4x32((c0, position_block, sample_ids & _MASK, step), seed)


def uniform(words: torch.Tensor) -> torch.Tensor:
    """Words to float32 uniforms (w + 1/2) / 2**32, at most 1 - 2**-24: never 0, never 1."""
    return ((words.to(torch.float32) + 0.5) * 2.0**-32).clamp_max(1.0 - 2.0**-24)


def token_words(
    stream: int, seed: int | torch.Tensor, step: int | torch.Tensor, sample_ids: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Words that decide (keep or noise; which token) at positions 0..length - 1: int64 [B, length] each."""
    blocks = torch.arange((length + 1) // 2, device=sample_ids.device)
    w0, w1, w2, w3 = words_at(stream, seed, step, sample_ids[:, None], blocks)
    decide = torch.stack([w0, w2], dim=-1).flatten(1)[:, :length]
    draw = torch.stack([w1, w3], dim=-1).flatten(1)[:, :length]
    return decide, draw


def acceptance_words(
    stream: int, seed: int | torch.Tensor, step: int | torch.Tensor, sample_ids: torch.Tensor, length: int
) -> torch.Tensor:
    """Words that accept a column of the alias table or take its alias: int64 [B, length]."""
    blocks = torch.arange((length + 3) // 4, device=sample_ids.device)
    words = words_at(stream, seed, step, sample_ids[:, None], blocks, vocab_block=1)
    return torch.stack(words, dim=-1).flatten(1)[:, :length]


def race_words(
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor,
    positions: torch.Tensor,
    vocab_size: int,
) -> torch.Tensor:
    """Words of every token at rows with coordinates sample_ids [R], positions [R]: int64 [R, vocab_size].

    Seed and step may be [R], too.
    """
    return _words_of_many(Stream.RACE, seed, step, sample_ids, positions, vocab_size)


def group_words(
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor,
    positions: torch.Tensor,
    groups: int,
) -> torch.Tensor:
    """Words of every group of tokens at the same rows: int64 [R, groups]."""
    return _words_of_many(Stream.GROUP, seed, step, sample_ids, positions, groups)


def keep_words(
    seed: int | torch.Tensor, step: int | torch.Tensor, sample_ids: torch.Tensor, positions: torch.Tensor
) -> Words:
    """Four words at the same rows, int64 [R]: of keeping, of a mixture's side, column, acceptance."""
    return words_at(Stream.KEEP, seed, step, sample_ids, positions)


def _words_of_many(stream: int, seed, step, sample_ids, positions, count: int) -> torch.Tensor:
    blocks = torch.arange((count + 3) // 4, device=sample_ids.device)
    seed, step = (
        value[:, None] if isinstance(value, torch.Tensor) and value.dim() == 1 else value
        for value in (seed, step)
    )
    words = words_at(stream, seed, step, sample_ids[:, None], positions[:, None], blocks)
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def _multiply(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    product = word * constant  # wraps modulo 2**64, which leaves all 64 bits of the product
    return (product >> 32) & _MASK, product & _MASK
