"""Cross-entropy of a head over the whole vocabulary, against full logits and other kernels.

Every row has a weight, as in masked diffusion; rivals that know no weights per row do without. Memory is what
a call holds beyond its inputs; the gradients that all return are part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.recording import BACKENDS, Case, name_of, role_of, skip_unless_served
from ggm_kernels import linear_cross_entropy


@dataclass(frozen=True)
class Size:
    """Rows N, vocabulary V, hidden size d."""

    rows: int = 4096
    vocab_size: int = 50257
    hidden_size: int = 768
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f"-{self.dtype}".replace("torch.", "")
        return f"N={self.rows}-V={self.vocab_size}-d={self.hidden_size}{dtype}"


# On a CPU products of 4096 rows take seconds: that size is among the full ones.
SIZES = [Size(rows=256)]
GPU_SIZES = [Size(rows=8192, dtype=torch.bfloat16)]
FULL_SIZES = [
    Size(),
    Size(rows=1024, dtype=torch.bfloat16),
    *(Size(rows=1024, vocab_size=vocab_size) for vocab_size in (1024, 4096, 262144)),
]
PASSES = ["forward", "forward+backward"]


def sizes_of(on_gpu: bool, full: bool) -> list[Size]:
    few = GPU_SIZES if on_gpu else SIZES
    return list(dict.fromkeys([*few, *FULL_SIZES])) if full else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(torch.cuda.is_available(), metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=str)


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

    def ours(self, backend: str | None = None, reduction: str = "mean") -> torch.Tensor:
        rows = {"row_weight": self.row_weight, "reduction": reduction}
        return linear_cross_entropy(self.hidden, self.weight, self.targets, **rows, backend=backend)

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        """Forward and backward; then the gradients go, so that each call pays for freeing its own."""

        def run() -> None:
            value = loss()
            (value if value.dim() == 0 else value.sum()).backward()
            self.hidden.grad = self.weight.grad = None

        return run


def make_head(size: Size, device: torch.device) -> Head:
    return Head(
        torch.randn(size.rows, size.hidden_size, device=device).to(size.dtype).requires_grad_(),
        (torch.randn(size.vocab_size, size.hidden_size, device=device) * 0.02)
        .to(size.dtype)
        .requires_grad_(),
        torch.randint(size.vocab_size, (size.rows,), device=device),
        torch.rand(size.rows, device=device),
    )


@pytest.fixture
def head(size: Size, device) -> Head:
    return make_head(size, device)


def pass_of(head: Head, loss: Callable[[], torch.Tensor], what: str) -> Callable[[], object]:
    return head.step(loss) if what == "forward+backward" else torch.no_grad()(loss)


def case_of(head: Head, what: str) -> Case:
    """The rival interleaved is cross_entropy of all logits. Least: both inputs read, one product or three."""
    rows, vocab_size, hidden_size = *head.hidden.shape[:1], *head.weight.shape
    read = (head.hidden.numel() + head.weight.numel()) * head.hidden.element_size()
    products = 1 if what == "forward" else 3
    work = Work(
        read * (1 if what == "forward" else 2),
        products * 2 * rows * vocab_size * hidden_size,
        head.hidden.dtype,
    )
    dtype = "" if head.hidden.dtype == torch.float32 else f" {head.hidden.dtype}".replace("torch.", "")
    extents = {"N": rows, "V": vocab_size, "d": hidden_size}
    rival = (
        ("full logits", pass_of(head, head.full_logits, what)) if rows * vocab_size * 12 < 8 * 2**30 else None
    )
    return Case(f"linear_cross_entropy {what}{dtype}", extents, head.hidden.device, work, rival)


def skip_beyond_memory(size: Size, name: str) -> None:
    if size.rows * size.vocab_size * 12 > 8 * 2**30:
        rivals.skip(f"{name} {size}", "its logits would take more than 8 GiB")


@pytest.mark.parametrize("what", PASSES)
def test_full_logits(record, head, size, what):
    skip_beyond_memory(size, "full logits")
    record(case_of(head, what), "full logits", pass_of(head, head.full_logits, what))


@pytest.mark.parametrize("what", PASSES)
def test_torch_compile(record, head, size, what):
    skip_beyond_memory(size, "full logits, torch.compile")
    compiled = rivals.compiled(head.full_logits, "full logits", lambda call: head.step(call)())
    record(case_of(head, what), "full logits, torch.compile", pass_of(head, compiled, what))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("find", rivals.CROSS_ENTROPIES)
def test_rivals(record, head, size, what, find):
    """Without weights: not all of them take one per row."""
    skip_beyond_memory(size, find.__name__)
    summed = find(size.dtype)
    call = pass_of(head, lambda: summed(head.hidden, head.weight, head.targets), what)
    record(case_of(head, what), find.__name__.replace("_", " "), call)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(record, head, size, device, backend, reduction, what):
    skip_unless_served("linear_cross_entropy", backend, device)
    ours = pass_of(head, lambda: head.ours(backend, reduction), what)
    name = name_of(backend) if reduction == "mean" else f"{name_of(backend)}, loss per row"
    record(case_of(head, what), name, ours, role_of(backend) if reduction == "mean" else "reference")
    if what == "forward+backward" and reduction == "mean" and size.rows * size.vocab_size * 12 < 2**30:
        leaves = [head.hidden, head.weight]
        gradients = [torch.autograd.grad(loss, leaves) for loss in (head.ours(backend), head.full_logits())]
        for given, expected in zip(*gradients, strict=True):
            tolerance = (1e-5 if size.dtype == torch.float32 else 2e-2) * float(expected.abs().max())
            torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)
