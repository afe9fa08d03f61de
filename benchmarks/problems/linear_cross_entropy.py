"""A head over the whole vocabulary and its weighted cross-entropy: from full logits, and ours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks.problems.heads import make_factors, suffix_of, training_step
from ggm_kernels import linear_cross_entropy


@dataclass(frozen=True)
class Size:
    """Rows N, vocabulary V, hidden size d."""

    rows: int = 4096
    vocab_size: int = 50257
    hidden_size: int = 768
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"N={self.rows}-V={self.vocab_size}-d={self.hidden_size}{suffix_of(self.dtype)}"


@dataclass
class Head:
    """Inputs of one size. The losses are weighted means."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    row_weight: torch.Tensor

    def full_logits(self) -> torch.Tensor:
        return self.mean_of(linear(self.hidden, self.weight))

    def mean_of(self, logits: torch.Tensor) -> torch.Tensor:
        losses = cross_entropy(logits.float(), self.targets, reduction="none")
        return (self.row_weight * losses).sum() / self.row_weight.sum()

    def mean_by(self, summed: Callable[..., torch.Tensor]) -> torch.Tensor:
        """By a rival's sum of losses, each by its row's weight."""
        return summed(self.hidden, self.weight, self.targets, self.row_weight) / self.row_weight.sum()

    def first(self, rows: int) -> "Head":
        return Head(self.hidden[:rows], self.weight, self.targets[:rows], self.row_weight[:rows])

    def ours(self, backend: str | None = None, reduction: str = "mean") -> torch.Tensor:
        rows = {"row_weight": self.row_weight, "reduction": reduction}
        return linear_cross_entropy(self.hidden, self.weight, self.targets, **rows, backend=backend)

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return training_step(loss, self.hidden, self.weight)


def make_head(size: Size, device: torch.device) -> Head:
    return Head(
        *make_factors(size, device),
        torch.randint(size.vocab_size, (size.rows,), device=device),
        torch.rand(size.rows, device=device),
    )


def pass_of(head: Head, loss: Callable[[], torch.Tensor], what: str) -> Callable[[], object]:
    return head.step(loss) if what == "forward+backward" else torch.no_grad()(loss)
