"""corrupt against PyTorch, eager and compiled, and against copying the same bytes."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import rivals
from benchmarks.timing import synchronise, times_faster
from ggm_kernels import NoiseLaw, backends, corrupt

VOCAB_SIZE = 50257
SIZES = [(64, 1024)]
FULL_SIZES = [(1, 1024), (64, 1024), (512, 1024), (4096, 1024)]
BACKENDS = ["reference", "cpu", "cuda", "triton"]
VARIANTS = ["uniform", "noise law", "keep_prob per position", "int32"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = FULL_SIZES if metafunc.config.getoption("--bench-full") else SIZES
        metafunc.parametrize("size", sizes, ids=lambda size: f"B={size[0]}-L={size[1]}")


@pytest.fixture
def inputs(size, device) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCAB_SIZE, size, device=device)
    return tokens, torch.rand(size[0], device=device)


def eager(tokens: torch.Tensor, keep_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The op as PyTorch users write it."""
    is_signal = torch.rand(tokens.shape, device=tokens.device) < keep_prob[:, None]
    noise = torch.randint(VOCAB_SIZE, tokens.shape, device=tokens.device)
    return torch.where(is_signal, tokens, noise), is_signal


def copy(tokens: torch.Tensor, keep_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes that no version can avoid: tokens in, tokens and one bool out, newly allocated."""
    return tokens.clone(), torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device).fill_(True)


def assert_corrupted(result: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor) -> None:
    noisy, is_signal = result
    assert torch.equal(noisy[is_signal], tokens[is_signal])
    assert ((noisy >= 0) & (noisy < VOCAB_SIZE)).all()
    assert 0.3 < is_signal.float().mean() < 0.7 or tokens.shape[0] == 1


def record(benchmark, call: Callable[[], object], inputs, group: str) -> object:
    """Time `call`; note its rate and its ratio to eager PyTorch, measured side by side."""
    tokens = inputs[0]
    benchmark.group = group

    def synchronised() -> object:
        result = call()
        synchronise()
        return result

    result = benchmark.pedantic(synchronised, warmup_rounds=3, rounds=20)
    moved = tokens.numel() * (2 * tokens.element_size() + 1)
    benchmark.extra_info["GB/s"] = round(moved / benchmark.stats["median"] / 1e9, 2)
    benchmark.extra_info["times_faster_than_eager"] = round(times_faster(lambda: eager(*inputs), call), 2)
    return result


def group_of(tokens: torch.Tensor) -> str:
    return f"corrupt {tuple(tokens.shape)} {tokens.device.type}, {torch.get_num_threads()} threads"


def test_copy(benchmark, inputs):
    record(benchmark, lambda: copy(*inputs), inputs, group_of(inputs[0]))


def test_torch_eager(benchmark, inputs):
    result = record(benchmark, lambda: eager(*inputs), inputs, group_of(inputs[0]))
    assert_corrupted(result, inputs[0])


def test_torch_compile(benchmark, inputs):
    compiled = rivals.compiled(eager, "corrupt", lambda call: call(*inputs))
    result = record(benchmark, lambda: compiled(*inputs), inputs, group_of(inputs[0]))
    assert_corrupted(result, inputs[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(benchmark, inputs, backend, device):
    state = backends()[backend]
    if not state:
        pytest.skip(f"{backend}: {state.reason}")
    if backend in ("cpu", "cuda") and backend != device.type:
        pytest.skip(f"{backend}: the tensors are on {device.type}")
    result = record(
        benchmark,
        lambda: corrupt(*inputs, VOCAB_SIZE, seed=1, backend=backend),
        inputs,
        group_of(inputs[0]),
    )
    assert_corrupted(result, inputs[0])
    expected = corrupt(*inputs, VOCAB_SIZE, seed=1, backend="reference")
    assert torch.equal(result[0], expected[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(benchmark, inputs, variant):
    """The best backend on the other forms of the call."""
    tokens, keep_prob = inputs
    noise = NoiseLaw(torch.rand(VOCAB_SIZE).softmax(0)) if variant == "noise law" else None
    if variant == "keep_prob per position":
        keep_prob = keep_prob[:, None].expand(tokens.shape).contiguous()
    if variant == "int32":
        tokens = tokens.to(torch.int32)
    result = record(
        benchmark,
        lambda: corrupt(tokens, keep_prob, VOCAB_SIZE, seed=1, noise=noise),
        inputs,
        f"{group_of(inputs[0])}, variants",
    )
    assert_corrupted(result, tokens)
