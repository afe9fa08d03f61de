"""Sequences half masked, and what samplers of masked diffusion write to accept some of their proposals."""

from dataclasses import dataclass

import torch

from ggm_kernels import commit

VOCAB_SIZE = 50257
COUNT, THRESHOLD, BUDGET = 32, -0.1, 4.0
RULES = {
    "count": {"count": COUNT},
    "threshold": {"threshold": THRESHOLD},
    "budget": {"budget": BUDGET},
    "budget, noise": {"budget": BUDGET, "rest": "noise", "vocab_size": VOCAB_SIZE},
}


@dataclass
class Rows:
    """Sequences half masked, with proposals and minus their entropies."""

    tokens: torch.Tensor
    proposal: torch.Tensor
    score: torch.Tensor
    eligible: torch.Tensor

    def ours(self, rule: str, backend: str | None = None) -> torch.Tensor:
        """One step in place."""
        return commit(
            self.tokens,
            self.proposal,
            self.score,
            **RULES[rule],
            eligible=self.eligible,
            seed=1,
            step=0,
            backend=backend,
        )

    def eager(self, rule: str) -> torch.Tensor:
        """The same in plain PyTorch."""
        return torch_commit(self.tokens, self.proposal, self.score, self.eligible, rule)


def torch_commit(tokens, proposal, score, eligible, rule: str) -> torch.Tensor:
    """The step as PyTorch users write it; tokens anew."""
    score = score.masked_fill(~eligible, -torch.inf)
    if rule == "count":
        index = score.topk(COUNT, dim=1).indices
        accepted = torch.zeros_like(eligible).scatter_(1, index, True)
    elif rule == "threshold":
        accepted = score >= THRESHOLD
    else:
        cost, order = (-score).sort(dim=1)
        within = cost.cumsum(dim=1) - cost <= BUDGET
        accepted = torch.zeros_like(eligible).scatter_(1, order, within)
    accepted &= eligible
    if "noise" in rule:
        noise = torch.randint(VOCAB_SIZE, tokens.shape, device=tokens.device, dtype=tokens.dtype)
        tokens = torch.where(eligible, noise, tokens)
    return torch.where(accepted, proposal, tokens)


def make_rows(size: tuple[int, int], device: torch.device) -> Rows:
    """Rows of that size."""
    tokens = torch.randint(VOCAB_SIZE, size, device=device)
    score = -torch.rand(size, device=device).pow(3) * 8
    return Rows(tokens, tokens.roll(1, 1), score, torch.rand(size, device=device) < 0.5)
