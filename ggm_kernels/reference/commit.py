"""Reference of `commit`."""

from __future__ import annotations

import math

import torch

from ggm_kernels.arguments.commit import Choice
from ggm_kernels.randomness import Stream
from ggm_kernels.reference import philox
from ggm_kernels.reference.noise import noise_tokens


def commit(tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice) -> None:
    """Take the proposal where the choice accepts it; leave or noise the other eligible positions."""
    if tokens.numel() == 0:
        return
    eligible = torch.ones_like(tokens, dtype=torch.bool) if choice.eligible is None else choice.eligible
    accepted = _accepted(score.to(torch.float32) + 0.0, eligible, choice)  # -0 + 0 is 0
    if choice.noises_rest:
        rest = eligible & ~accepted
        tokens.copy_(torch.where(rest, _noise(tokens, choice).to(tokens.dtype), tokens))
    tokens.copy_(torch.where(accepted, proposal.to(tokens.dtype), tokens))
    if choice.accepted is not None:
        choice.accepted.copy_(accepted)


def _accepted(score: torch.Tensor, eligible: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Bool [B, L]: the candidates that every criterion given accepts, a prefix of their order each."""
    candidate = eligible & ~score.isnan()
    if choice.threshold is not None:
        candidate &= score >= _column(choice.threshold, score, torch.float32)
    order = _order(score, candidate)
    cost, stands = -score.gather(1, order), candidate.gather(1, order)
    if choice.count is not None:
        rank = torch.arange(score.shape[1], device=score.device)
        stands = stands & (rank < _column(choice.count, score, torch.int64))
    if choice.budget is not None:
        budget = _column(choice.budget, score, torch.float32)
        stands = stands & _within_budget(cost, candidate.gather(1, order), budget)
    return torch.zeros_like(candidate).scatter(1, order, stands)


def _order(score: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Positions with the candidates first: by score, the largest first, and by position where it is equal."""
    by_score = torch.where(candidate, score, 0.0).argsort(dim=1, descending=True, stable=True)
    others_last = (~candidate.gather(1, by_score)).to(torch.uint8).argsort(dim=1, stable=True)
    return by_score.gather(1, others_last)


def _within_budget(cost: torch.Tensor, candidate: torch.Tensor, budget: torch.Tensor) -> torch.Tensor:
    """Where the costs before sum to no more than the budget; rows in the order of their candidates.

    Costs are integers, multiples of a power of two that depends on the row: their sums are exact and the
    same in every order. An infinite cost leaves room for nothing after it; minus infinity is free.
    """
    counts = candidate & cost.isfinite()
    scale, largest = _unit(torch.where(counts, cost, 0.0), budget)
    units = torch.where(counts, cost.double() * scale, 0.0).clamp_max(largest).long()
    before = units.cumsum(1) - units
    most = (budget.double() * scale).clamp_max(2.0**62).long()
    beyond = (candidate & (cost == math.inf)).long()
    is_first = beyond.cumsum(1) - beyond == 0
    return (budget >= 0) & (before <= most) & (is_first | (budget == math.inf))


def _unit(cost: torch.Tensor, budget: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Units per nat, float64 [B, 1], and what a cost counts at most: no sum reaches 2**62.

    Behind a cost beyond the budget and all gains, which are negative costs, nothing is accepted: how far
    beyond it is makes no difference, and the unit need not have room for it.
    """
    length, gain = cost.shape[1], (-cost).amax(1, keepdim=True).clamp_min(0.0)
    reach = gain.double() * length + budget.clamp_min(0.0).nan_to_num(0.0, posinf=math.inf).double()
    binade_end = reach.float().view(torch.int32) | 0x7FFFFF
    of_reach = torch.where(reach < 2.0**127, binade_end, 0x7F7FFFFF).view(torch.float32)
    counted = gain.maximum(cost.amax(1, keepdim=True).clamp_min(0.0).minimum(of_reach))
    exponent = (counted.view(torch.int32) >> 23).clamp_min(
        1
    ).long() - 127  # counted is below 2^(exponent + 1)
    scale = (61 - exponent - length.bit_length() + 1023 << 52).view(torch.float64)
    return scale, 2.0 ** (62 - length.bit_length())


def _column(limit: float | torch.Tensor, score: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A limit as a column [B, 1]."""
    return torch.as_tensor(limit, dtype=dtype, device=score.device).expand(score.shape[:1])[:, None]


def _noise(tokens: torch.Tensor, choice: Choice) -> torch.Tensor:
    batch, length = tokens.shape
    ids = choice.sample_ids
    ids = torch.arange(batch, device=tokens.device) if ids is None else ids
    _, draw = philox.token_words(Stream.COMMIT, choice.seed, choice.step, ids, length)
    coordinates = (Stream.COMMIT, choice.seed, choice.step, ids)
    return noise_tokens(draw, *coordinates, choice.vocab_size, choice.noise_table, choice.mask_id)
