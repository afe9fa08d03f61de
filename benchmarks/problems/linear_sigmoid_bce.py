"""The training head: inputs, the losses that users write from full logits or a gather, and ours."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy, embedding, linear, softplus

from benchmarks.ceilings import Work
from benchmarks.problems.heads import make_factors, suffix_of, training_step
from benchmarks.timing import empty_caches, peak_extra_bytes, release_kept_memory, times_faster
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
        return f"N={self.rows}-C={self.count}-V={self.vocab_size}-d={self.hidden_size}{suffix_of(self.dtype)}"


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

    def ours(self, backend: str | None = None, **options: Any) -> torch.Tensor:
        arguments = (self.hidden, self.weight, self.candidates, self.signal_weight)
        return linear_sigmoid_bce(*arguments, **options, backend=backend)

    def with_shared(self, shared: torch.Tensor, **options: Any) -> torch.Tensor:
        """The row's own candidates, and as noise those that all rows share."""
        return self.ours(shared_candidates=shared, shared_weight=1 / len(shared), **options)

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return training_step(loss, self.hidden, self.weight)


def make_head(size: Size, device: torch.device) -> Head:
    return Head(
        *make_factors(size, device),
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


SMALL, LARGE = Size(vocab_size=4096), Size(vocab_size=262144)
SHARED = 4096  # noise tokens that all rows have in common
# A dense gradient of the weight is [V, d], and costs what V is; the rows of candidates alone do not.
FLAT_PASSES = ["forward", "forward+backward, sparse"]


@dataclass(frozen=True)
class Flatness:
    """One pass of two heads that differ in V alone, that of the larger first."""

    calls: tuple[Callable[[], object], Callable[[], object]]
    large: Head

    @classmethod
    def of(cls, device: torch.device, what: str, shared: int = 0) -> "Flatness":
        """With so many shared candidates, and gradients of the weight as rows where `what` says "sparse"."""
        # Products with thousands of shared candidates take their time: fewer rows.
        rows = 1024 if shared else SMALL.rows
        large, small = (make_head(replace(size, rows=rows), device) for size in (LARGE, SMALL))
        options = {"sparse_grad": "sparse" in what}

        def call_of(head: Head) -> Callable[[], object]:
            loss = partial(head.ours, **options)
            if shared:
                # Different ones: equal ones are one, and of few tokens many would be equal.
                tokens = torch.randperm(head.weight.shape[0], device=device)[:shared]
                loss = partial(head.with_shared, tokens, **options)
            return pass_of(head, loss, what.partition(",")[0])

        return cls((call_of(large), call_of(small)), large)

    def time(self, device: torch.device) -> float:
        """That of the larger vocabulary over that of the smaller, with caches emptied before each call.

        A large cache keeps all of the small weight from call to call, and little of the large one: memory
        then makes a difference that no kernel can undo. Between two calls a network empties it.
        """
        return times_faster(*self.calls, seconds=1, before=empty_caches(device))

    def memory(self) -> tuple[int, int]:
        """Bytes that each takes beyond its inputs."""
        seen = []
        for call in self.calls:
            call()
            release_kept_memory()
            seen.append(peak_extra_bytes(call))
        return seen[0], seen[1]
