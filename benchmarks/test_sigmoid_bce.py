"""sigmoid_bce from logits that are there, against a gather in PyTorch, eager and compiled."""

import pytest
import torch

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.sigmoid_bce import Rows, make_rows
from benchmarks.recording import BACKENDS, Case, name_of, role_of, skip_unless_served

# Rows N, candidates per row C, vocabulary V: a few candidates of many tokens, and all of a few.
SIZES = [(256, 1, 50257), (4096, 101, 100)]
FULL_SIZES = [*SIZES, (65536, 4, 100), (1024, 64, 50257)]
PASSES = ["forward", "forward+backward"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = FULL_SIZES if metafunc.config.getoption("--bench-full") else SIZES
        metafunc.parametrize("size", sizes, ids=lambda size: "N={}-C={}-V={}".format(*size))


@pytest.fixture
def rows(size, device) -> Rows:
    return make_rows(*size, device)


def case_of(rows: Rows, what: str) -> Case:
    """Candidates, their logits and weights in; backward a gradient of all logits out."""
    count = rows.candidates.numel()
    moved = count * (rows.candidates.element_size() + 4 + 4)
    if what == "forward+backward":
        moved += count * (rows.candidates.element_size() + 4) + rows.logits.numel() * 4
    size = {"N": len(rows.logits), "C": rows.candidates.shape[1], "V": rows.logits.shape[1]}
    gather = rows.pass_of(rows.gather, what)
    return Case(f"sigmoid_bce {what}", size, rows.logits.device, Work(moved), ("gather", gather))


@pytest.mark.parametrize("what", PASSES)
def test_torch_gather(record, rows, what):
    record(case_of(rows, what), "gather", rows.pass_of(rows.gather, what))


@pytest.mark.parametrize("what", PASSES)
def test_torch_compile(record, rows, what):
    compiled = rivals.compiled(rows.gather, "gather", lambda call: call().sum().backward())
    rows.logits.grad = None
    record(case_of(rows, what), "gather, torch.compile", rows.pass_of(compiled, what))


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(record, rows, device, backend, what):
    skip_unless_served("sigmoid_bce", backend, device)
    ours = rows.pass_of(lambda: rows.ours(backend), what)
    record(case_of(rows, what), name_of(backend), ours, role_of(backend))
    losses = rows.ours(backend), rows.gather()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(loss.sum(), rows.logits) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
