"""A law small enough to enumerate, and how far samples are from it."""

from __future__ import annotations

import math

import torch


def potts_ring(length: int = 4, colours: int = 3, coupling: float = 1.2) -> torch.Tensor:
    """Probabilities float64 [colours] * length: neighbours on a ring agree often, colour 0 is likelier."""
    states = all_states(length, colours)
    energy = coupling * (states == states.roll(1, 1)).sum(1).double() + 0.3 * (states == 0).sum(1)
    return energy.softmax(0).view([colours] * length)


def all_states(length: int, colours: int) -> torch.Tensor:
    """Every sequence, int64 [colours**length, length], in the order of a law's flattened probabilities."""
    return torch.cartesian_prod(*[torch.arange(colours)] * length).view(-1, length)


def draw(law: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Sequences int64 [count, L]."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(law.flatten(), count, replacement=True, generator=generator)
    return all_states(law.dim(), law.shape[0])[index]


def entropy(law: torch.Tensor) -> float:
    """Nats per token."""
    return -float(torch.special.xlogy(law, law).sum()) / law.dim()


def total_variation(samples: torch.Tensor, law: torch.Tensor) -> float:
    """Half the sum of absolute differences between frequencies of sequences and the law."""
    powers = law.shape[0] ** torch.arange(law.dim() - 1, -1, -1)
    counts = torch.bincount((samples * powers).sum(1), minlength=law.numel())
    return float(0.5 * (counts / len(samples) - law.flatten()).abs().sum())


def expected_variation(law: torch.Tensor, count: int) -> float:
    """About the total variation of `count` exact samples: from normal laws of the frequencies."""
    deviations = (law * (1.0 - law) / count).sqrt()
    return float(0.5 * deviations.sum()) * math.sqrt(2.0 / math.pi)
