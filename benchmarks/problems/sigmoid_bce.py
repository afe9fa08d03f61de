"""Logits of which some are candidates: what PyTorch users write for their loss, and ours."""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from ggm_kernels import sigmoid_bce


@dataclass
class Rows:
    """Logits [N, V], of which C per row are candidates. The losses are what users write, and ours."""

    logits: torch.Tensor
    candidates: torch.Tensor
    signal_weight: torch.Tensor

    def gather(self) -> torch.Tensor:
        f, signal = self.logits.gather(1, self.candidates), self.signal_weight
        return (signal * softplus(-f) + (1 - signal) * softplus(f)).sum(1)

    def ours(self, backend: str | None = None) -> torch.Tensor:
        return sigmoid_bce(self.logits, self.candidates, self.signal_weight, backend=backend)

    def pass_of(self, loss, what: str):
        """The loss, or it and the gradient [N, V], which goes at once."""

        def step() -> None:
            loss().sum().backward()
            self.logits.grad = None

        return step if what == "forward+backward" else loss


def make_rows(rows: int, count: int, vocab_size: int, device: torch.device) -> Rows:
    return Rows(
        torch.randn(rows, vocab_size, device=device).requires_grad_(),
        torch.randint(vocab_size, (rows, count), device=device),
        torch.rand(rows, count, device=device),
    )
