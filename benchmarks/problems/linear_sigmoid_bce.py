"""The training head: inputs, the losses that users write from full logits or a gather, and ours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, embedding, linear, softplus

from benchmarks.ceilings import Work
from ggm_kernels import linear_sigmoid_bce


@dataclass(frozen=True)
class Size:
    """Rows N, candidates per row C, vocabulary V, hidden size d."""

    rows: int = 4096
    count: int = 1
    vocab_size: int = 50257
    hidden_size: int = 768
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f"-{self.dtype}".replace("torch.", "")
        return f"N={self.rows}-C={self.count}-V={self.vocab_size}-d={self.hidden_size}{dtype}"


@dataclass
class Head:
    """Inputs of one size. The losses are what users write, and ours."""

    hidden: torch.Tensor
    weight: torch.Tensor
    candidates: torch.Tensor
    signal_weight: torch.Tensor

    def weighted(self, f: torch.Tensor) -> torch.Tensor:
        signal = self.signal_weight
        return (signal * softplus(-f) + (1 - signal) * softplus(f)).sum(1)

    def full_logits(self) -> torch.Tensor:
        return self.weighted(linear(self.hidden, self.weight).gather(1, self.candidates))

    def gather(self) -> torch.Tensor:
        chosen = embedding(self.candidates, self.weight)
        return self.weighted((self.hidden[:, None] * chosen).sum(-1))

    def full_cross_entropy(self) -> torch.Tensor:
        return cross_entropy(linear(self.hidden, self.weight), self.candidates[:, 0], reduction="none")

    def cross_entropy_by(self, summed_loss: Callable) -> torch.Tensor:
        """By a rival's function of hidden states, weight and targets."""
        return summed_loss(self.hidden, self.weight, self.candidates[:, 0])

    def ours(self, backend: str | None = None) -> torch.Tensor:
        arguments = (self.hidden, self.weight, self.candidates, self.signal_weight)
        return linear_sigmoid_bce(*arguments, backend=backend)

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        """Forward and backward; then the gradients go, so that each call pays for freeing its own."""

        def run() -> None:
            loss().sum().backward()
            self.hidden.grad = self.weight.grad = None

        return run


def make_head(size: Size, device: torch.device) -> Head:
    return Head(
        torch.randn(size.rows, size.hidden_size, device=device).to(size.dtype).requires_grad_(),
        (torch.randn(size.vocab_size, size.hidden_size, device=device) * 0.02)
        .to(size.dtype)
        .requires_grad_(),
        torch.randint(size.vocab_size, (size.rows, size.count), device=device),
        torch.rand(size.rows, size.count, device=device),
    )


def pass_of(head: Head, loss: Callable[[], torch.Tensor], what: str) -> Callable[[], object]:
    return head.step(loss) if what == "forward+backward" else loss


def work_of(head: Head, what: str) -> Work:
    """Rows of hidden and weight in; backward the same again, and both gradients out, the weight's dense.

    A dot product per candidate; backward each of them is a multiple of two rows.
    """
    rows, element, dtype = head.candidates.numel(), head.hidden.element_size(), head.hidden.dtype
    read = (head.hidden.numel() + rows * head.hidden.shape[1]) * element
    flops = 2 * rows * head.hidden.shape[1]
    if what == "forward":
        return Work(read, flops, dtype)
    written = (head.hidden.numel() + head.weight.numel()) * element
    return Work(2 * read + written, 3 * flops, dtype)


def shared_loss(head: Head, shared: torch.Tensor) -> torch.Tensor:
    """A candidate of each row's own, and as noise those that all rows share."""
    arguments = (head.hidden, head.weight, head.candidates, head.signal_weight)
    return linear_sigmoid_bce(*arguments, shared_candidates=shared, shared_weight=1 / len(shared))
