"""The score entropy of SEDD (arXiv 2310.16834), for absorbing and for uniform noise.

A score is the ratio s(a) = p_t(x with a at i) / p_t(x). Its loss is, up to the rate of the noise, the sum
over tokens a != x_i of Q(x_i, a) [s_theta - s log s_theta + s (log s - 1)], s the ratio given the data: 0 for
that ratio, above 0 for any other, and its mean over the data has the true score as minimiser.
The bound of uniform diffusion in the mean parametrisation (UDLM, duo) is the same loss with
s_theta(a) = m(a) / m(x_i), m = alpha p0 + (1 - alpha) / V.
"""

from __future__ import annotations

import torch


def absorbing_score_entropy(
    log_score: torch.Tensor, is_masked: torch.Tensor, data: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Loss of each position, [B, L].

    Parameters
    ----------
    log_score : torch.Tensor
        Logarithm of s_theta of the V tokens that are not the mask, float [B, L, V].
    is_masked : torch.Tensor
        bool [B, L]: elsewhere nothing can happen backwards, and the loss is 0.
    data : torch.Tensor
        x0, int64 [B, L].
    sigma : torch.Tensor
        Total noise, [B, 1].
    """
    ratio = 1.0 / torch.expm1(sigma)  # alpha / (1 - alpha), that of the data token
    of_data = log_score.gather(2, data[..., None])[..., 0]
    loss = log_score.exp().sum(dim=2) - ratio * of_data + ratio * (ratio.log() - 1.0)
    return torch.where(is_masked, loss, torch.zeros_like(loss))


def uniform_score_entropy(
    log_score: torch.Tensor, noisy: torch.Tensor, data: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Loss of each position, [B, L].

    Parameters
    ----------
    log_score : torch.Tensor
        Logarithm of s_theta, float [B, L, V]; 0 at the token that stands there.
    noisy, data : torch.Tensor
        x_t and x0, int64 [B, L].
    keep : torch.Tensor
        alpha, [B, 1].
    """
    vocab_size = log_score.shape[2]
    # How many times as likely a wrong token is as the data token, given the data.
    wrong = (1.0 - keep) / (vocab_size * keep + 1.0 - keep)
    of_data = log_score.gather(2, data[..., None])[..., 0]
    scores, logs = log_score.exp().sum(dim=2) - 1.0, log_score.sum(dim=2)
    at_data = scores - wrong * logs + (vocab_size - 1) * wrong * (wrong.log() - 1.0)
    elsewhere = scores - logs - (1.0 / wrong - 1.0) * of_data
    elsewhere = elsewhere - (vocab_size - 2) - (wrong.log() + 1.0) / wrong
    return torch.where(noisy == data, at_data, elsewhere) / vocab_size
