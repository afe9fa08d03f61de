"""Argument checks of the calls of `GGM`, in the manner of `ggm_kernels.checks`."""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.randomness import MAX_SAMPLE_ID


def check_data(tokens: torch.Tensor, length: int, weights: torch.Tensor | None) -> None:
    """Raise TypeError or ValueError unless tokens are integers [B, L], B at least 1, beside the weights.

    Without weights they may be on any device. Their values are for whoever reads them to check.
    """
    check_tokens(tokens, length, weights)
    if len(tokens) == 0:
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}; allowed: at least one sequence")


def check_tokens(tokens: torch.Tensor, length: int, weights: torch.Tensor | None) -> None:
    """Raise TypeError or ValueError unless tokens are integers [B, L] on the device of the weights."""
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, shapes=[(tokens.shape[0], length)])
    if weights is not None:
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


def check_logits(logits: torch.Tensor, tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise ValueError unless a denoiser gave tokens [B, L] logits [B, L, V] of the tokens that data have."""
    expected = (*tokens.shape, vocab_size)
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"denoiser: got logits of shape {tuple(logits.shape)}; allowed: {expected}"
            f"{_of_a_mask(logits.shape[-1:], vocab_size)}"
        )


def check_factors(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, vocab_size: int) -> None:
    """Raise ValueError unless hidden states [B, L, d] and weight [V, d] are factors of such logits."""
    if hidden.dim() != 3 or hidden.shape[:2] != tokens.shape:
        expected = f"({tokens.shape[0]}, {tokens.shape[1]}, d)"
        raise ValueError(f"denoiser: got hidden of shape {tuple(hidden.shape)}; allowed: {expected}")
    if weight.shape != (vocab_size, hidden.shape[2]):
        raise ValueError(
            f"denoiser: got a weight of shape {tuple(weight.shape)}; allowed: {(vocab_size, hidden.shape[2])}"
            f"{_of_a_mask(weight.shape[:1], vocab_size)}"
        )


def _of_a_mask(width: tuple[int, ...], vocab_size: int) -> str:
    """What to do about logits of more tokens than there are: a head often has one of a mask, too."""
    wider = len(width) == 1 and width[0] > vocab_size
    return ", those of the `vocab_size` tokens: slice off what a mask has" if wider else ""


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
