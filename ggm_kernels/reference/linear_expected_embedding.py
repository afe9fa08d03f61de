"""Reference of `linear_expected_embedding`, with all logits at once."""

from __future__ import annotations

import torch

from ggm_kernels.reference.precision import without_autocast


@without_autocast
def linear_expected_embedding(
    hidden, weight, embedding, bias, softcap, scale
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean embeddings [N, e] and the log-sum-exp of the logits [N]."""
    logits, _ = _logits(hidden, weight, bias, softcap, scale)
    mean = logits.softmax(1) @ embedding.to(logits.dtype)
    return mean.to(hidden.dtype), logits.logsumexp(1)


@without_autocast
def linear_expected_embedding_backward(
    grad, mean, log_sum_exp, hidden, weight, embedding, bias, softcap, scale, needs
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of hidden, weight, embedding and bias, each None where `needs` says so."""
    logits, slope = _logits(hidden, weight, bias, softcap, scale)
    probs, grad = (logits - log_sum_exp[:, None]).exp(), grad.to(logits.dtype)
    worth = grad @ embedding.to(logits.dtype).T  # of a token, were it certain
    grad_logits = probs * (worth - (probs * worth).sum(1, keepdim=True)) * slope
    gradients = (
        lambda: grad_logits @ weight.to(logits.dtype),
        lambda: grad_logits.T @ hidden.to(logits.dtype),
        lambda: probs.T @ grad,
        lambda: grad_logits.sum(0),
    )
    return tuple(
        gradient().to(hidden.dtype) if needed else None
        for gradient, needed in zip(gradients, needs, strict=True)
    )


def _logits(hidden, weight, bias, softcap, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V], and their derivative by those that the head gives."""
    logits = hidden.to(scale.dtype) @ weight.to(scale.dtype).T
    if bias is not None:
        logits = logits + bias.to(scale.dtype)
    scale = scale[:, None] if scale.dim() == 1 else scale
    if softcap is None:
        return logits * scale, scale
    share = torch.tanh(logits / softcap)
    return softcap * share * scale, (1 - share * share) * scale
