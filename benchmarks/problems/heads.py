"""What heads of a vocabulary have in common: the factors of their logits, and a step of training."""

from collections.abc import Callable
from typing import Protocol

import torch


class Size(Protocol):
    """Of factors: N rows, V tokens, d, and their dtype."""

    rows: int
    vocab_size: int
    hidden_size: int
    dtype: torch.dtype


def make_factors(size: Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [N, d] and weight [V, d], leaves."""
    return (
        torch.randn(size.rows, size.hidden_size, device=device).to(size.dtype).requires_grad_(),
        (torch.randn(size.vocab_size, size.hidden_size, device=device) * 0.02)
        .to(size.dtype)
        .requires_grad_(),
    )


def suffix_of(dtype: torch.dtype) -> str:
    """What the name of a size says of its dtype: nothing of float32."""
    return "" if dtype == torch.float32 else f"-{dtype}".replace("torch.", "")


def training_step(loss: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Callable[[], object]:
    """Forward and backward; then the gradients go, so that each call pays for freeing its own."""

    def run() -> None:
        value = loss()
        (value if value.dim() == 0 else value.sum()).backward()
        for leaf in leaves:
            leaf.grad = None

    return run
