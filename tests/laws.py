"""Statistical checks: each raises AssertionError where a sample contradicts the law that it is held against.

Every check has a false-alarm rate of FALSE_ALARM under the law. Seeds are fixed, so a pass stays a pass.
"""

import torch
from scipy import stats

FALSE_ALARM = 1e-6


def check_rate(events: torch.Tensor, probability: float) -> None:
    """Bool events [n] against their probability: exact binomial test."""
    assert stats.binomtest(int(events.sum()), events.numel(), probability).pvalue > FALSE_ALARM


def check_law(tokens: torch.Tensor, weights: torch.Tensor) -> None:
    """Tokens against their law, given up to a factor: chi-square, and nothing where the weight is 0."""
    seen = torch.bincount(tokens.flatten(), minlength=len(weights))
    possible = weights > 0
    assert int(seen[~possible].sum()) == 0
    if int(possible.sum()) > 1:
        probs = weights[possible].double() / weights[possible].double().sum()
        expected = probs * int(seen.sum())
        assert stats.chisquare(seen[possible].numpy(), expected.numpy()).pvalue > FALSE_ALARM


def check_independence(a: torch.Tensor, b: torch.Tensor, vocab_size: int) -> None:
    """Tokens a and b, pair by pair: chi-square of the contingency table."""
    pairs = (a.long() * vocab_size + b.long()).flatten()
    table = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size)
    assert stats.chi2_contingency(table.numpy()).pvalue > FALSE_ALARM


def check_large_law(tokens: torch.Tensor, logits: torch.Tensor, bins: int = 64) -> None:
    """Tokens against softmax(logits) of a large vocabulary, in bins of tokens: chi-square.

    Three ways to bin: by logit (a wrong temperature), by the low digits of the token (lanes of a vector), by
    contiguous ranges (tiles).
    """
    vocab_size = len(logits)
    if vocab_size <= bins:
        return check_law(tokens, logits.double().softmax(0))
    token = torch.arange(vocab_size)
    by_logit = torch.empty(vocab_size, dtype=torch.int64)
    by_logit[logits.argsort()] = token * bins // vocab_size
    for binned in (by_logit, token % bins, token * bins // vocab_size):
        probs = torch.zeros(bins, dtype=torch.float64).index_add_(0, binned, logits.double().softmax(0))
        check_law(binned[tokens.flatten()], probs)
