"""What a network says at the positions to be predicted: losses, cross-entropy of X_t, calibration.

No logits [R, V] are made, but where the loss has all V tokens for candidates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.functional import linear

from ggm.mixture import log_mixture, noise_probs
from ggm.objective import (
    ObjectiveConfig,
    Visits,
    cross_entropy_from_hidden,
    loss_from_hidden,
    loss_from_logits,
    weighted_candidates,
)
from ggm_kernels import NoiseLaw, linear_cross_entropy

_BLOCK = 2**20  # logits at once where a sum over the vocabulary has no other way: 8 MB in float64


@dataclass(frozen=True)
class Predictions:
    """What a network says at the positions to be predicted: losses and calibration are made of it.

    Attributes
    ----------
    visits : Visits
        The positions, R = B * K rows.
    hidden : torch.Tensor
        Hidden states there, float [R, d].
    weight, bias : torch.Tensor
        Head: g = hidden @ weight.T + bias, [V, d] and [V].
    noise : NoiseLaw or None
        pi; None is uniform.
    seed, step : int
        Coordinates of what a loss draws.
    predicts : str
        "state" or "data", as in `GGMConfig`.
    shift : torch.Tensor or None
        Of a network that has seen the tokens X_t there: what takes out what each tells, float64 [R].
    """

    visits: Visits
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    noise: NoiseLaw | None
    seed: int
    step: int
    predicts: str = "state"
    shift: torch.Tensor | None = None

    def mean_loss(self, objective: ObjectiveConfig, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Mean over all R rows of the losses of those that count, float32 scalar.

        Parameters
        ----------
        objective : ObjectiveConfig
            The loss.
        counts : torch.Tensor, optional
            bool [R]: rows whose loss is not taken for 0; None is all.
        """
        if objective.form == "cross_entropy" and self.predicts == "data":
            # Of a sum the gradients are made beside it: a product less than gradients of rows take.
            share = self.hidden.new_full(self.hidden.shape[:1], 1.0 / len(self.hidden), dtype=torch.float32)
            share = share if counts is None else share * counts
            return self._cross_entropy_of_data(row_weight=share, reduction="sum")
        losses = self.losses(objective)
        return (losses if counts is None else losses.masked_fill(~counts, 0.0)).mean()

    def losses(self, objective: ObjectiveConfig) -> torch.Tensor:
        """Loss per row, float32 [R], from the logits of the candidates alone unless they are all V tokens."""
        if objective.form == "cross_entropy":
            return (
                self._cross_entropy_of_data() if self.predicts == "data" else self._cross_entropy_of_state()
            )
        coordinates = {"seed": self.seed, "step": self.step}
        targets = self.visits
        if self.predicts == "data":  # the same losses of a token without noise
            targets = dataclasses.replace(targets, keep_prob=torch.ones_like(targets.keep_prob))
        candidates = weighted_candidates(
            objective, targets, len(self.weight), noise=self.noise, **coordinates
        )
        if objective.sums_vocabulary:
            return loss_from_logits(linear(self.hidden, self.weight, self.bias), candidates, self.noise)
        return loss_from_hidden(self.hidden, self.weight, self.bias, candidates, self.noise)

    def cross_entropy(self) -> torch.Tensor:
        """-log of the conditional of X_t at the token that it has there, averaged over its noise, [R]."""
        if self.predicts == "state":
            return self._cross_entropy_of_state()
        size = max(1, _BLOCK // len(self.weight))
        rows = torch.arange(len(self.hidden), device=self.hidden.device)
        return torch.cat([self._cross_entropy_of_mixture(part) for part in rows.split(size)])

    def calibration(self) -> torch.Tensor:
        """Sum over the vocabulary of exp g per row, float32 [R], in full precision under autocast, too."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            hidden, weight, bias = (factor.float() for factor in (self.hidden, self.weight, self.bias))
            data = self.visits.data.flatten()
            _, log_sum_exp = linear_cross_entropy(hidden, weight, data, bias=bias, return_log_sum_exp=True)
            return log_sum_exp.exp()

    def _cross_entropy_of_data(self, **options: Any) -> torch.Tensor:
        data = self.visits.data.flatten()
        return cast(
            torch.Tensor, linear_cross_entropy(self.hidden, self.weight, data, bias=self.bias, **options)
        )

    def _cross_entropy_of_state(self) -> torch.Tensor:
        return cross_entropy_from_hidden(self.hidden, self.weight, self.bias, self.visits, self.noise)

    def _cross_entropy_of_mixture(self, rows: torch.Tensor) -> torch.Tensor:
        """`cross_entropy` of some rows, from alpha p0 + (1 - alpha) pi, float64."""
        logits = linear(self.hidden[rows], self.weight, self.bias).double()
        if self.shift is not None:
            seen = self.visits.current.flatten()[rows, None]
            logits = logits.scatter_add(1, seen, self.shift[rows, None])
        every = torch.arange(logits.shape[1], device=logits.device)
        pi = noise_probs(self.noise, every, logits.shape[1])
        keep_prob = self.visits.keep_prob.flatten()[rows]
        log_probs = log_mixture(logits.log_softmax(dim=1), keep_prob[:, None], pi)
        of_data = log_probs.gather(1, self.visits.data.flatten()[rows, None])[:, 0]
        # What noise never draws may have no probability.
        of_noise = torch.where(pi > 0.0, pi * log_probs, 0.0).sum(dim=1)
        return -(torch.where(keep_prob > 0.0, keep_prob * of_data, 0.0) + (1.0 - keep_prob) * of_noise)
