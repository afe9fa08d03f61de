"""commit against what samplers of masked diffusion write in PyTorch: sort or topk, running sums, scatter."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from benchmarks import rivals
from benchmarks.ceilings import Work
from benchmarks.recording import BACKENDS, Case, name_of, role_of, skip_unless_served
from ggm_kernels import commit

VOCAB_SIZE = 50257
SIZES = [(1, 256), (64, 1024)]
FULL_SIZES = [*SIZES, (32, 4096)]
COUNT, THRESHOLD, BUDGET = 32, -0.1, 4.0
RULES = {
    "count": {"count": COUNT},
    "threshold": {"threshold": THRESHOLD},
    "budget": {"budget": BUDGET},
    "budget, noise": {"budget": BUDGET, "rest": "noise", "vocab_size": VOCAB_SIZE},
}


def sizes_of(on_gpu: bool, full: bool) -> list[tuple[int, int]]:
    """Sizes [B, L]."""
    return FULL_SIZES if full or on_gpu else SIZES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(torch.cuda.is_available(), metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=lambda size: f"B={size[0]}-L={size[1]}")


@dataclass
class Rows:
    """Sequences half masked, with proposals and minus their entropies."""

    tokens: torch.Tensor
    proposal: torch.Tensor
    score: torch.Tensor
    eligible: torch.Tensor

    def ours(self, rule: str, backend: str | None = None) -> torch.Tensor:
        """One step in place."""
        return commit(
            self.tokens,
            self.proposal,
            self.score,
            **RULES[rule],
            eligible=self.eligible,
            seed=1,
            step=0,
            backend=backend,
        )

    def eager(self, rule: str) -> torch.Tensor:
        """The same in plain PyTorch."""
        return torch_commit(self.tokens, self.proposal, self.score, self.eligible, rule)


def torch_commit(tokens, proposal, score, eligible, rule: str) -> torch.Tensor:
    """The step as PyTorch users write it; tokens anew."""
    score = score.masked_fill(~eligible, -torch.inf)
    if rule == "count":
        index = score.topk(COUNT, dim=1).indices
        accepted = torch.zeros_like(eligible).scatter_(1, index, True)
    elif rule == "threshold":
        accepted = score >= THRESHOLD
    else:
        cost, order = (-score).sort(dim=1)
        within = cost.cumsum(dim=1) - cost <= BUDGET
        accepted = torch.zeros_like(eligible).scatter_(1, order, within)
    accepted &= eligible
    if "noise" in rule:
        noise = torch.randint(VOCAB_SIZE, tokens.shape, device=tokens.device, dtype=tokens.dtype)
        tokens = torch.where(eligible, noise, tokens)
    return torch.where(accepted, proposal, tokens)


def make_rows(size: tuple[int, int], device: torch.device) -> Rows:
    """Rows of that size."""
    tokens = torch.randint(VOCAB_SIZE, size, device=device)
    score = -torch.rand(size, device=device).pow(3) * 8
    return Rows(tokens, tokens.roll(1, 1), score, torch.rand(size, device=device) < 0.5)


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
