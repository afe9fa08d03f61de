"""Backends of which edition of a step: which of them do what is new, and draw from the race of two levels."""

import pytest

from ggm_kernels.randomness import RACE_GROUP

SECOND = ("reference", "cpu")


def need_second_edition(backend: str) -> None:
    """Skip where the options and by-products of the second edition are refused by name."""
    if backend not in SECOND:
        pytest.skip(f"{backend} refuses it by name")


def need_same_noise(backend: str, vocab_size: int, temperature: float | None = None) -> None:
    """Skip where a backend races the tokens of all groups at once: the same law from other noise."""
    if not has_same_noise(backend, vocab_size, temperature):
        pytest.skip(f"{backend} races all tokens at once")


def has_same_noise(backend: str, vocab_size: int, temperature: float | None = None) -> bool:
    """Whether a backend draws the tokens that the reference draws."""
    return backend in SECOND or vocab_size <= RACE_GROUP or temperature == 0
