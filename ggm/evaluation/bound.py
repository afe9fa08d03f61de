"""The likelihood bound of a keep-or-replace step, in closed form for given log-conditionals.

The formula, its derivation and where it is tight stand in docs/mathematics.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ggm_kernels import NoiseLaw, corrupt


class Noise:
    """The distribution pi of noise, as the bound needs it.

    Parameters
    ----------
    law : NoiseLaw or None
        pi; None is uniform.
    vocab_size : int
        V.
    """

    def __init__(self, law: NoiseLaw | None, vocab_size: int) -> None:
        self.law, self.vocab_size = law, vocab_size
        uniform = torch.full((vocab_size,), 1.0 / vocab_size, dtype=torch.float64)
        self.probs = uniform if law is None else law.probs.to(dtype=torch.float64, device="cpu")
        self.minus_entropy = float(torch.special.xlogy(self.probs, self.probs).sum())

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """pi(token), float64."""
        return self.probs.to(tokens.device)[tokens]

    def corrupt(self, tokens: torch.Tensor, keep_prob: torch.Tensor, **coordinates: Any) -> torch.Tensor:
        """Tokens [B, L], each kept with a probability [B] or [B, L] and drawn from pi otherwise."""
        noisy, _ = corrupt(tokens, keep_prob.float(), self.vocab_size, noise=self.law, **coordinates)
        return noisy


class Site(NamedTuple):
    """Positions whose tokens a step of the reverse process draws: R rows, all float64 or int64 [R].

    Attributes
    ----------
    data : torch.Tensor
        x0 there.
    keep_prob : torch.Tensor
        alpha: probability that X_t holds the data token there.
    noise_rate : torch.Tensor
        eps of the step from X_t to X_{t+1}.
    """

    data: torch.Tensor
    keep_prob: torch.Tensor
    noise_rate: torch.Tensor


class LogModel(NamedTuple):
    """What the bound reads of log m, m the model's conditional of X_t at a row's position: float64.

    Attributes
    ----------
    data : torch.Tensor
        log m(x0), [R].
    mean : torch.Tensor
        Mean of log m over pi, or an unbiased estimate of it, [R].
    """

    data: torch.Tensor
    mean: torch.Tensor


def divergence_from_data(site: Site, model: LogModel, noise: Noise) -> torch.Tensor:
    """KL(r || m), float64 [R], where r = alpha 1{c = x0} + (1 - alpha) pi is that of X_t given the data."""
    alpha, pi = site.keep_prob, noise.of(site.data)
    at_data = alpha + (1.0 - alpha) * pi
    others = (1.0 - alpha) * (
        (1.0 - pi) * torch.log1p(-alpha) + noise.minus_entropy - torch.special.xlogy(pi, pi)
    )
    minus_entropy = torch.special.xlogy(at_data, at_data) + torch.where(alpha < 1.0, others, 0.0)
    of_data = torch.where(alpha > 0.0, alpha * model.data, 0.0)
    return minus_entropy - of_data - torch.where(alpha < 1.0, (1.0 - alpha) * model.mean, 0.0)


def step_bound(
    site: Site,
    current: torch.Tensor,
    log_current: torch.Tensor,
    divergence: torch.Tensor,
    noise: Noise,
) -> torch.Tensor:
    """Terms of the bound where the token of X_{t+1} is known.

    Parameters
    ----------
    site : Site
        R rows.
    current : torch.Tensor
        b, the token of X_{t+1}, int64 [R, C] (C of them, each for itself).
    log_current : torch.Tensor
        log m(b), float64 [R, C].
    divergence : torch.Tensor
        Of `divergence_from_data`, [R].
    noise : Noise
        pi.

    Returns
    -------
    torch.Tensor
        float64 [R, C]: KL of the posterior q(X_t | b, x0) from the model's keep-or-replace step, which draws
        from m(c) [(1 - eps) 1{c = b} + eps pi(b)] up to a constant.
    """
    alpha, eps = site.keep_prob[:, None], site.noise_rate[:, None]
    pi = noise.of(current)
    at_b = alpha * (current == site.data[:, None]) + (1.0 - alpha) * pi
    replaced, kept = eps * pi, (1.0 - eps) * at_b
    total = replaced + kept  # q(X_{t+1} = b | x0)
    log_model_total = torch.logaddexp(torch.log1p(-eps) + log_current, eps.log() + pi.log())
    # Where b cannot stay, or cannot be noise, the summand is 0.
    kept_part = torch.where(kept > 0.0, kept * (at_b.log() - log_current), 0.0)
    replaced_part = torch.where(replaced > 0.0, replaced * divergence[:, None], 0.0)
    return (replaced_part + kept_part) / total + log_model_total - total.log()


def prior_divergence(keep_prob: torch.Tensor, tokens: torch.Tensor, noise: Noise) -> torch.Tensor:
    """KL(q(X_{T,i} | x0) || pi) at each position, float64 [B, L].

    Parameters
    ----------
    keep_prob : torch.Tensor
        alpha_{i,T}, float64 [B, L].
    tokens : torch.Tensor
        x0, int64 [B, L].
    noise : Noise
        pi.
    """
    rows = Site(tokens.flatten(), keep_prob.flatten(), torch.zeros_like(keep_prob.flatten()))
    log_pi = noise.of(rows.data).log()
    model = LogModel(log_pi, torch.full_like(log_pi, noise.minus_entropy))
    per_site = torch.where(rows.keep_prob > 0.0, divergence_from_data(rows, model, noise), 0.0)
    return per_site.view(keep_prob.shape)
