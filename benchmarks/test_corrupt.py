"""corrupt against PyTorch, eager and compiled, and against copying the same bytes."""

import pytest
import torch

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.corrupt import VOCAB_SIZE, Noised, copy, eager, eager_masking, make_inputs
from benchmarks.recording import BACKENDS, Case, best_backend, name_of, role_of, skip_unless_served
from ggm_kernels import NoiseLaw, corrupt

SIZES = [(1, 1024), (64, 1024), (512, 1024)]
FULL_SIZES = [*SIZES, (4096, 1024)]
# A launch alone, a training batch, and 570 MB: ten times what a GPU's cache holds.
GPU_SIZES = [(1, 1024), (64, 1024), (32768, 1024)]
VARIANTS = ["noise law", "absorbing", "keep_prob per position", "int32"]


def sizes_of(on_gpu: bool, full: bool) -> list[tuple[int, int]]:
    """Sizes [B, L] by device; `full` adds to them."""
    few = GPU_SIZES if on_gpu else SIZES
    return sorted({*few, *FULL_SIZES}) if full else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(torch.cuda.is_available(), metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=lambda size: f"B={size[0]}-L={size[1]}")


@pytest.fixture
def inputs(size, device) -> tuple[torch.Tensor, torch.Tensor]:
    return make_inputs(size, device)


def case_of(tokens: torch.Tensor, keep_prob: torch.Tensor, form: str = "", rival=None) -> Case:
    batch, length = tokens.shape
    moved = tokens.numel() * (2 * tokens.element_size() + 1) + keep_prob.numel() * keep_prob.element_size()
    op = f"corrupt, {form}" if form else "corrupt"
    rival = rival or (lambda: eager(tokens, keep_prob))
    return Case(op, {"B": batch, "L": length}, tokens.device, Work(moved), ("eager", rival))


def assert_corrupted(result: Noised, tokens: torch.Tensor) -> None:
    noisy, is_signal = result
    assert torch.equal(noisy[is_signal], tokens[is_signal])
    assert ((noisy >= 0) & (noisy < VOCAB_SIZE)).all()
    assert 0.3 < is_signal.float().mean() < 0.7 or tokens.shape[0] == 1


def test_copy(record, inputs):
    record(case_of(*inputs), "copy", lambda: copy(inputs[0]), "floor", rounds=20)


def test_torch_eager(record, inputs):
    result = record(case_of(*inputs), "eager", lambda: eager(*inputs), rounds=20)
    assert_corrupted(result, inputs[0])


def test_torch_compile(record, inputs):
    compiled = rivals.compiled(eager, "corrupt", lambda call: call(*inputs))
    result = record(case_of(*inputs), "torch.compile", lambda: compiled(*inputs), rounds=20)
    assert_corrupted(result, inputs[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(record, inputs, backend, device):
    skip_unless_served("corrupt", backend, device)
    call = lambda: corrupt(*inputs, VOCAB_SIZE, seed=1, backend=backend)  # noqa: E731
    result = record(case_of(*inputs), name_of(backend), call, role_of(backend), rounds=20)
    assert_corrupted(result, inputs[0])
    expected = corrupt(*inputs, VOCAB_SIZE, seed=1, backend="reference")
    assert torch.equal(result[0], expected[0])


@pytest.mark.parametrize("implementation", ["eager", "ggm_kernels"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(record, device, variant, implementation):
    """The other forms of the call, each against eager PyTorch."""
    tokens, keep_prob = make_inputs((64, 1024), device)
    probs = torch.rand(VOCAB_SIZE, device=device).softmax(0) if variant == "noise law" else None
    noise = None if probs is None else NoiseLaw(probs)
    if variant == "absorbing":
        noise = NoiseLaw.absorbing(VOCAB_SIZE, VOCAB_SIZE - 1)
    if variant == "keep_prob per position":
        keep_prob = keep_prob[:, None].expand(tokens.shape).contiguous()
    if variant == "int32":
        tokens = tokens.to(torch.int32)
    rival = lambda: eager(tokens, keep_prob, probs)  # noqa: E731
    if variant == "absorbing":
        rival = lambda: eager_masking(tokens, keep_prob, VOCAB_SIZE - 1)  # noqa: E731
    case = case_of(tokens, keep_prob, variant, rival)
    if implementation == "eager":
        result = record(case, "eager", rival)
    else:
        backend = best_backend(device)
        ours = lambda: corrupt(tokens, keep_prob, VOCAB_SIZE, seed=1, noise=noise, backend=backend)  # noqa: E731
        result = record(case, name_of(backend), ours, role_of(backend), rounds=20)
    assert_corrupted(result, tokens)
