"""Cross-entropy of a head over the whole vocabulary, against full logits and other kernels.

Every row has a weight, as in masked diffusion: rivals give a loss per row, which is weighted. Memory is what
a call holds beyond its inputs; the gradients that all return are part of it.
"""

import pytest
import torch

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.linear_cross_entropy import Head, Size, make_head, pass_of
from benchmarks.recording import BACKENDS, Case, name_of, role_of, skip_unless_served

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


@pytest.fixture
def head(size: Size, device) -> Head:
    return make_head(size, device)


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
    skip_beyond_memory(size, find.__name__)
    summed = find(size.dtype)
    few = head.first(64)
    torch.testing.assert_close(few.mean_by(summed), few.full_logits(), rtol=1e-2, atol=0, check_dtype=False)
    call = pass_of(head, lambda: head.mean_by(summed), what)
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
