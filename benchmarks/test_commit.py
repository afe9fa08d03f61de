"""commit against what samplers of masked diffusion write in PyTorch: sort or topk, running sums, scatter."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.problems.commit import RULES, Rows, make_rows, torch_commit
from benchmarks.recording import BACKENDS, Case, name_of, role_of, skip_unless_served

SIZES = [(1, 256), (64, 1024)]
FULL_SIZES = [*SIZES, (32, 4096)]


def sizes_of(on_gpu: bool, full: bool) -> list[tuple[int, int]]:
    """Sizes [B, L]."""
    return FULL_SIZES if full or on_gpu else SIZES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(torch.cuda.is_available(), metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=lambda size: f"B={size[0]}-L={size[1]}")


def case_of(rows: Rows, rule: str, rival: Callable[[], torch.Tensor]) -> Case:
    batch, length = rows.tokens.shape
    moved = rows.tokens.numel() * (3 * rows.tokens.element_size() + rows.score.element_size() + 1)
    return Case(
        f"commit, {rule}", {"B": batch, "L": length}, rows.tokens.device, Work(moved), ("eager", rival)
    )


@pytest.mark.parametrize("rule", RULES)
def test_torch_eager(record, device, size, rule):
    rows = make_rows(size, device)
    eager = lambda: rows.eager(rule)  # noqa: E731
    record(case_of(rows, rule, eager), "eager", eager, rounds=20)


@pytest.mark.parametrize("rule", RULES)
def test_torch_compile(record, device, size, rule):
    rows = make_rows(size, device)
    inputs = (rows.tokens, rows.proposal, rows.score, rows.eligible, rule)
    compiled = rivals.compiled(torch_commit, "commit", lambda call: call(*inputs))
    case = case_of(rows, rule, lambda: rows.eager(rule))
    record(case, "torch.compile", lambda: compiled(*inputs), rounds=20)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ggm_kernels(record, device, size, rule, backend):
    skip_unless_served("commit", backend, device)
    rows = make_rows(size, device)
    before = rows.tokens.clone()
    expected = rows.eager(rule)
    case = case_of(rows, rule, lambda: rows.eager(rule))
    record(case, name_of(backend), lambda: rows.ours(rule, backend), role_of(backend), rounds=20)
    if "noise" in rule:
        assert torch.equal(rows.tokens[~rows.eligible], before[~rows.eligible])
    else:
        assert torch.equal(rows.tokens, expected)
