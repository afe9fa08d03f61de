"""Unigram entropy and distinct n-grams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

_ORDERS = (1, 2, 3)


def unigram_entropy(units: Sequence[Hashable]) -> float:
    """Entropy in nats of the units of one sequence, each as likely as it is frequent there.

    At most log of their number, whatever the vocabulary: compare sequences of one length only.
    """
    total = len(units)
    return -sum(n / total * math.log(n / total) for n in Counter(units).values())


def distinct_share(sequences: Sequence[Sequence[Hashable]], order: int) -> float | None:
    """Share of different ones among all n-grams of the sequences; None if there is no n-gram."""
    grams: Counter[tuple[Hashable, ...]] = Counter()
    for sequence in sequences:
        grams.update(zip(*(sequence[start:] for start in range(order)), strict=False))
    return len(grams) / grams.total() if grams else None


def diversity(sequences: Sequence[Sequence[Hashable]]) -> dict[str, Any]:
    """Entropy and distinct-n, by sequence and over all.

    Parameters
    ----------
    sequences : sequence of sequences
        Tokens, words or characters. Empty ones count for nothing.

    Returns
    -------
    dict
        ``unigram_entropy`` in nats: ``per_sample_mean``, the mean over samples of the entropy of each
        (that of the literature on discrete diffusion), and ``pooled``, of all units together.
        ``distinct``: for n = 1, 2, 3 the mean over samples of the share of different n-grams, and
        the share among the n-grams of all. None where there is nothing to count.
    """
    filled = [sequence for sequence in sequences if sequence]
    pooled = [unit for sequence in filled for unit in sequence]
    return {
        "unigram_entropy": {
            "per_sample_mean": _mean([unigram_entropy(sequence) for sequence in filled]),
            "pooled": unigram_entropy(pooled) if pooled else None,
        },
        "distinct": {
            str(order): {
                "per_sample_mean": _mean([distinct_share([sequence], order) for sequence in filled]),
                "pooled": distinct_share(filled, order),
            }
            for order in _ORDERS
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None
