"""What a prediction of the data token says of a noisy one: the mixture with the noise, and its way back.

Both follow from Bayes' rule; docs/mathematics.md derives them.
"""

from __future__ import annotations

import torch

from ggm_kernels import NoiseLaw


def noise_probs(noise: NoiseLaw | None, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """pi(token), float64, the shape of `tokens`; a `noise` of None is uniform over `vocab_size` tokens."""
    if noise is None:
        return torch.full(tokens.shape, 1.0 / vocab_size, dtype=torch.float64, device=tokens.device)
    return noise.probs_on(tokens.device)[tokens]


def leave_one_out_shift(keep_prob: torch.Tensor, noise_prob: torch.Tensor) -> torch.Tensor:
    """What to add to a denoiser's logit of the token that stands there, to take out what that token tells.

    Parameters
    ----------
    keep_prob : torch.Tensor
        alpha: probability that the token is data.
    noise_prob : torch.Tensor
        pi(token), float64.

    Returns
    -------
    torch.Tensor
        -log(1 + alpha / ((1 - alpha) pi)), float64. -inf where the token is surely data: all tokens then
        tell nothing of what the others alone do.
    """
    keep_prob = keep_prob.double()
    return -torch.log1p(keep_prob / ((1.0 - keep_prob) * noise_prob))


def log_mixture(log_data: torch.Tensor, keep_prob: torch.Tensor, noise_prob: torch.Tensor) -> torch.Tensor:
    """Logarithm of alpha p0 + (1 - alpha) pi, the distribution of a noisy token.

    Parameters
    ----------
    log_data : torch.Tensor
        log p0, float64.
    keep_prob, noise_prob : torch.Tensor
        alpha and pi, float64, broadcast against it.
    """
    return torch.logaddexp(keep_prob.log() + log_data, torch.log1p(-keep_prob) + noise_prob.log())
