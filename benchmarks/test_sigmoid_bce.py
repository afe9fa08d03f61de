"""The training head: linear_sigmoid_bce against full logits, a hand-written gather, and cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy, embedding, linear, softplus

from benchmarks.timing import peak_extra_bytes, synchronise, times_faster
from ggm_kernels import backends, linear_sigmoid_bce

BACKENDS = ["reference", "cpu", "cuda", "triton"]


@dataclass(frozen=True)
class Size:
    """Rows N, candidates per row C, vocabulary V, hidden size d."""

    rows: int = 4096
    count: int = 1
    vocab_size: int = 50257
    hidden_size: int = 768

    def __str__(self) -> str:
        return f"N={self.rows}-C={self.count}-V={self.vocab_size}-d={self.hidden_size}"


SIZES = [Size()]
FULL_SIZES = [
    *(Size(vocab_size=vocab_size) for vocab_size in (1024, 4096, 50257, 262144)),
    *(Size(count=count) for count in (4, 16, 64)),
    *(Size(hidden_size=hidden_size) for hidden_size in (256, 4096)),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = FULL_SIZES if metafunc.config.getoption("--bench-full") else SIZES
        metafunc.parametrize("size", sizes, ids=str)


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
        """What a head over the whole vocabulary costs: another loss, the same gradients' shapes."""
        return cross_entropy(linear(self.hidden, self.weight), self.candidates[:, 0], reduction="none")

    def ours(self, backend: str | None = None) -> torch.Tensor:
        arguments = (self.hidden, self.weight, self.candidates, self.signal_weight)
        return linear_sigmoid_bce(*arguments, backend=backend)

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        """Forward and backward, with gradients made anew as after zero_grad()."""

        def run() -> None:
            self.hidden.grad = self.weight.grad = None
            loss().sum().backward()

        return run


@pytest.fixture(scope="module")
def heads() -> dict[Size, Head]:
    return {}


@pytest.fixture
def head(size: Size, device, heads) -> Head:
    if size not in heads:
        heads.clear()
        heads[size] = Head(
            torch.randn(size.rows, size.hidden_size, device=device).requires_grad_(),
            (torch.randn(size.vocab_size, size.hidden_size, device=device) * 0.02).requires_grad_(),
            torch.randint(size.vocab_size, (size.rows, size.count), device=device),
            torch.rand(size.rows, size.count, device=device),
        )
    return heads[size]


def record(benchmark, head: Head, loss: Callable[[], torch.Tensor], size: Size, what: str, rounds: int = 10):
    """Time a pass; note its memory and its ratio to the hand-written gather, measured side by side."""
    benchmark.group = f"linear_sigmoid_bce {what} {size} {head.hidden.device.type}"
    wrap = head.step if what == "forward+backward" else (lambda call: call)
    call, rival = wrap(loss), wrap(head.gather)

    def synchronised() -> None:
        call()
        synchronise()

    head.hidden.grad = head.weight.grad = None  # else the gradients of the call before hide those of this one
    benchmark.extra_info["peak_extra_MB"] = round(peak_extra_bytes(call) / 1e6, 1)
    benchmark.pedantic(synchronised, rounds=rounds)  # warm: the memory was measured on a call
    benchmark.extra_info["times_faster_than_gather"] = round(times_faster(rival, call), 2)


PASSES = ["forward", "forward+backward"]


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("name", ["gather", "full_logits", "full_cross_entropy"])
def test_torch(benchmark, head, size, what, name):
    if name != "gather" and size.rows * size.vocab_size * 12 > 8 * 2**30:
        pytest.skip(f"{name}: its logits would take more than 8 GiB")
    record(benchmark, head, getattr(head, name), size, what, rounds=10 if name == "gather" else 1)


@pytest.mark.parametrize("what", PASSES)
def test_torch_compile(benchmark, head, size, what):
    torch._dynamo.reset()
    compiled = torch.compile(head.gather)
    try:
        head.step(compiled)()
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    record(benchmark, head, compiled, size, what)


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(benchmark, head, size, device, backend, what):
    state = backends()[backend]
    if not state or "linear_sigmoid_bce" not in state.ops:
        pytest.skip(f"{backend}: {state.reason}")
    if backend in ("cpu", "cuda") and backend != device.type:
        pytest.skip(f"{backend}: the tensors are on {device.type}")
    record(benchmark, head, lambda: head.ours(backend), size, what)
    leaves = [head.hidden, head.weight]
    gradients = torch.autograd.grad(head.ours(backend).sum(), leaves)
    expected = torch.autograd.grad(head.gather().sum(), leaves)
    torch.testing.assert_close(head.ours(backend), head.gather(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
