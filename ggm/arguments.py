"""Argument checks of the calls of `GGM`, in the manner of `ggm_kernels.checks`."""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.randomness import MAX_SAMPLE_ID


def check_data(tokens: torch.Tensor, length: int, weights: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless tokens are integers [B, L], B at least 1, beside the weights.

    Their values are for whoever reads them to check.
    """
    check_tokens(tokens, length, weights)
    if len(tokens) == 0:
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}; allowed: at least one sequence")


def check_tokens(tokens: torch.Tensor, length: int, weights: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless tokens are integers [B, L] on the device of the weights."""
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, shapes=[(tokens.shape[0], length)])
    checks.same_device("tokens", tokens, "the weights", weights)


def check_given(
    tokens: torch.Tensor, frozen: torch.Tensor, length: int, vocab_size: int, weights: torch.Tensor
) -> None:
    """Raise TypeError, ValueError or IndexError unless some tokens may stay while others are drawn.

    Tokens that are not frozen may have any value.
    """
    check_tokens(tokens, length, weights)
    checks.tensor("frozen", frozen, dtypes=(torch.bool,), shapes=[tokens.shape])
    checks.same_device("frozen", frozen, "tokens", tokens)
    checks.values_in_range("tokens", tokens.masked_fill(~frozen, 0), 0, vocab_size, IndexError)


def sample_ids_of(count: int, sample_ids: torch.Tensor | None, weights: torch.Tensor) -> torch.Tensor:
    """Ids int64 [count] of samples, on the device of the weights: the given ones, or 0, 1, ..

    Raises
    ------
    TypeError, ValueError
        If the count is not an int from 0, or the ids are not that many integers.
    """
    count = checks.integer("count", count, low=0, high=MAX_SAMPLE_ID)
    if sample_ids is None:
        return torch.arange(count, device=weights.device)
    checks.tensor("sample_ids", sample_ids, dtypes=checks.INTEGERS, shapes=[(count,)])
    checks.same_device("sample_ids", sample_ids, "the weights", weights)
    return sample_ids.long()
