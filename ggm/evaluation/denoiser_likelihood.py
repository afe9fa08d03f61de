"""The likelihood bound of plain denoisers: uniform, unigram and absorbing diffusion, given as callables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from ggm.arguments import check_logits
from ggm.evaluation.bound import (
    LogModel,
    Noise,
    Site,
    divergence_from_data,
    prior_divergence,
    step_bound,
)
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.times import EvenTimes
from ggm.mixture import leave_one_out_shift, log_mixture
from ggm_kernels import NoiseLaw

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.inference_mode()
def denoiser_bound(
    denoiser: Denoiser,
    keep_prob: torch.Tensor,
    tokens: torch.Tensor,
    config: LikelihoodConfig,
    *,
    vocab_size: int,
    noise: NoiseLaw | None = None,
    mask_id: int | None = None,
    predicts: Literal["leave_one_out", "posterior"] = "leave_one_out",
) -> torch.Tensor:
    """Unbiased estimates of the bound of -log p(x0), for a chain whose steps change all positions.

    Parameters
    ----------
    denoiser : callable
        ``denoiser(x_t, n)``, int64 [B, L] and [B], gives logits of the data token at every position, float
        [B, L, V]; n is the number of the step, 1 to T. It may see the token at its own position.
    keep_prob : torch.Tensor
        1 = alpha_0 >= alpha_1 >= .. >= alpha_T, float64 [T + 1]: probability that X_n holds the data token.
    tokens : torch.Tensor
        Data, int64 [B, L].
    config : LikelihoodConfig
        Times, seed and batch; `sites_per_step` means nothing here.
    vocab_size : int
        V, the width of the denoiser's logits.
    noise : NoiseLaw, optional
        pi over V tokens; None is uniform, or absorbing where there is a `mask_id`.
    mask_id : int, optional
        The token that all noise is (absorbing diffusion): V, or one of the V that data never have.
    predicts : str
        What the logits are of: "leave_one_out", x0 given the tokens at the other positions, which is what the
        bounds of uniform diffusion (UDLM, duo) train; or "posterior", x0 given all of x_t, which is what
        cross-entropy trains, and from which the other follows by dividing out the own token. A masked
        position tells nothing of itself: with absorbing noise both are one.

    Returns
    -------
    torch.Tensor
        Nats, float64 [B] on the CPU. The reverse step is the plug-in posterior: q(x_s | x_t, x0) with the
        leave-one-out distribution in place of x0, as MDLM, SEDD and duo sample.

    Raises
    ------
    ValueError
        If there is both a noise and a mask_id, keep_prob does not fall from 1, `predicts` is another word, or
        logits are not of V tokens.
    """
    if predicts not in ("leave_one_out", "posterior"):
        raise ValueError(f"predicts: got {predicts!r}; allowed: leave_one_out, posterior")
    if mask_id is not None and noise is not None:
        raise ValueError("noise, mask_id: got both; allowed: one of them, a mask_id means absorbing noise")
    keep_prob = keep_prob.to(tokens.device, torch.float64)
    if not (keep_prob[0] == 1.0 and bool((keep_prob.diff() <= 0.0).all()) and bool(keep_prob[-1] >= 0.0)):
        raise ValueError("keep_prob: got values that do not fall from 1; allowed: 1 = alpha_0 >= .. >= 0")
    if mask_id is not None:
        probs = torch.zeros(max(vocab_size, mask_id + 1), dtype=torch.float64)
        probs[mask_id] = 1.0
        noise = NoiseLaw(probs)
    law = Noise(noise, vocab_size if noise is None else noise.vocab_size)
    chain = _PlugIn(denoiser, vocab_size, keep_prob, law, mask_id, predicts == "posterior", config)
    parts = [chain.bound(tokens[rows], rows) for rows in torch.arange(len(tokens)).split(config.batch)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class _PlugIn:
    """The reverse chain of a denoiser."""

    denoiser: Denoiser
    vocab_size: int
    keep_prob: torch.Tensor
    noise: Noise
    mask_id: int | None
    divides_own_token: bool
    config: LikelihoodConfig

    def bound(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Nats of some sequences, whose numbers are `rows`."""
        counts = torch.full((len(rows),), len(self.keep_prob) - 1)
        times = EvenTimes.of(rows, counts, self.config.times, seed=self.config.seed)
        total = torch.zeros(len(rows), dtype=torch.float64)
        for number in range(times.looks):
            at = (times.at(number) + 1).to(tokens.device)
            total += self._terms(tokens, rows.to(tokens.device), at, number).cpu() * times.weights
        last = self.keep_prob[-1].expand(tokens.shape)
        return total + prior_divergence(last, tokens, self.noise).sum(dim=1).cpu()

    def _terms(self, tokens: torch.Tensor, ids: torch.Tensor, at: torch.Tensor, number: int) -> torch.Tensor:
        """Sum of the terms of all positions in one step `at` of each sequence, float64 [B]."""
        after, before = self.keep_prob[at], self.keep_prob[at - 1]
        noisy = self.noise.corrupt(tokens, after, seed=self.config.seed, step=number, sample_ids=ids)
        logits = self.denoiser(noisy, at).double()
        check_logits(logits, tokens, self.vocab_size)
        if self.divides_own_token and self.mask_id is None:
            shift = leave_one_out_shift(after[:, None], self.noise.of(noisy))
            logits = logits.scatter_add(2, noisy[..., None], shift[..., None])
        log_model = self._log_model(logits, before)
        rate = torch.where(before > 0.0, 1.0 - after / before, 1.0)
        length = tokens.shape[1]
        site = Site(tokens.flatten(), before.repeat_interleave(length), rate.repeat_interleave(length))
        current = noisy.flatten()[:, None]
        pi = self.noise.probs.to(tokens.device)
        mean = torch.where(pi > 0.0, pi * log_model, 0.0).sum(dim=1)
        log_data = log_model.gather(1, site.data[:, None]).squeeze(1)
        divergence = divergence_from_data(site, LogModel(log_data, mean), self.noise)
        terms = step_bound(site, current, log_model.gather(1, current), divergence, self.noise)
        return terms.view(tokens.shape).sum(dim=1)

    def _log_model(self, logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Logarithm of alpha_s p0 + (1 - alpha_s) pi, the distribution of X_s, float64 [B * L, V]."""
        logits = logits.flatten(0, 1)
        if self.mask_id is not None:  # it is never data
            logits = pad(logits, (0, self.noise.vocab_size - logits.shape[1]), value=-math.inf)
            logits[:, self.mask_id] = -math.inf
        keep = before.repeat_interleave(len(logits) // len(before))[:, None]
        return log_mixture(logits.log_softmax(dim=1), keep, self.noise.probs.to(logits.device))
