"""What the gradients of `sigmoid_bce` and `linear_sigmoid_bce` are summed by."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SharedGradients:
    """What shared candidates add to each gradient, not yet rounded; None where it is not needed.

    Attributes
    ----------
    tokens : torch.Tensor
        Rows of the weight, ascending, int64 [S].
    hidden : torch.Tensor or None
        float [N, d].
    rows : torch.Tensor or None
        Of the weight, float [S, d]: the first of equal tokens has all of it, the others have zeros.
    bias : torch.Tensor or None
        float [S], likewise.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor | None
    rows: torch.Tensor | None
    bias: torch.Tensor | None

    def places(self, candidates: torch.Tensor) -> torch.Tensor:
        """Where among `tokens` each candidate has what is to be added to it, int64; -1 where nowhere."""
        if len(self.tokens) == 0:
            return torch.full_like(candidates, -1, dtype=torch.int64)
        tokens = candidates.to(torch.int64).contiguous()
        first = torch.searchsorted(self.tokens, tokens)
        found = self.tokens[first.clamp_max(len(self.tokens) - 1)] == tokens
        return torch.where(found, first, -1)

    def write(self, grad_weight: torch.Tensor | None, grad_bias: torch.Tensor | None) -> None:
        """Write the rows of the tokens to gradients that are zero, in their dtype; repeats add zeros."""
        for gradient, rows in ((grad_weight, self.rows), (grad_bias, self.bias)):
            if gradient is not None and rows is not None:
                gradient.index_add_(0, self.tokens, rows.to(gradient.dtype))


def entries_by_logit(candidates: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates [N, C] in the order of the logits that they name, those of one logit in their own order.

    Returns flat indices into logits [N, V], ascending but for the -1 of candidates that are out of range,
    and flat indices into `candidates`, both int64 [N * C]: what kernels sum repeated candidates by.
    """
    rows, count = candidates.shape
    tokens = candidates.to(torch.int64)
    starts = torch.arange(rows, device=candidates.device)[:, None]
    legal = (tokens >= 0) & (tokens < vocab_size)
    entries, order = torch.where(legal, starts * vocab_size + tokens, -1).sort(dim=1, stable=True)
    return entries.flatten(), (starts * count + order).flatten()
