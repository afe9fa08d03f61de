"""The regression guard: its verdicts, and that it sees a lost fast path of every op."""

import dataclasses
import itertools
from importlib import import_module

import pytest
import torch

import ggm_kernels
from benchmarks import guard
from ggm_kernels import Backend

needs_core = pytest.mark.skipif(not ggm_kernels.backends()["cpu"], reason="no compiled core")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch, request):
    monkeypatch.setattr(guard, "PAUSE", 0.0)
    if request.node.get_closest_marker("slow"):  # a lost fast path takes minutes to measure six times
        monkeypatch.setattr(guard, "MORE_ATTEMPTS", 0)


def demand_of(ratios: list[float], **changes) -> guard.Demand:
    left = list(ratios)
    return guard.Demand("op", "N=1", "rival", 5, lambda: left.pop(0), **changes)


@pytest.mark.parametrize(
    ("ratios", "seen", "passed"),
    [
        ([6.0], 6.0, True),
        ([5.0], 5.0, True),
        ([1.0, 4.0, 7.0], 7.0, True),
        ([4.9, 1.0, 4.0, 4.0, 9.0], 9.0, True),  # a neighbour's phase was over
        ([4.9, 1.0, 4.0, 4.0, 4.0, 3.0, 9.0], 4.9, False),  # a seventh attempt is not made
    ],
)
def test_best_of_attempts(ratios, seen, passed):
    verdict = guard.judge(demand_of(ratios))
    assert (verdict.seen, verdict.passed) == (seen, passed)


def test_between_least_and_goal_passes_after_three_attempts():
    assert guard.judge(demand_of([3.0, 2.0, 2.5], least=2.5)).seen == 3.0
    assert guard.judge(demand_of([3.0, 2.0, 2.5], least=2.5)).passed
    assert guard.judge(demand_of([1.0, 2.0, 2.4, 2.6, 9.0], least=2.5)).seen == 2.6
    assert not guard.judge(demand_of([1.0, 2.0, 2.4] * 2, least=2.5)).passed


@needs_core
@pytest.mark.parametrize(("ratios", "status"), [([9.0, 5.5], 0), ([9.0, 1.0], 1)])
def test_exit_status_and_table(monkeypatch, capsys, ratios, status):
    monkeypatch.setattr(guard, "demands", lambda: [demand_of([ratio] * 6) for ratio in ratios])
    threads = torch.get_num_threads()
    try:
        assert guard.main() == status
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().out
    words = [line.split()[-1] for line in told.splitlines() if line.startswith("op ") and "N=1" in line]
    assert words == (["pass", "FAIL"] if status else ["pass", "pass"])
    assert ("FAILED: 1" in told) == bool(status)


def test_no_core_fails(monkeypatch, capsys):
    state = Backend(False, "no C++ compiler", frozenset())
    monkeypatch.setattr(ggm_kernels, "backends", lambda: {"cpu": state})
    monkeypatch.setattr(guard, "demands", lambda: pytest.fail("nothing to measure"))
    assert guard.main() == 1
    assert "no C++ compiler" in capsys.readouterr().err


@needs_core
@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "group"),
    [
        ("corrupt", guard.corrupt_demands),
        ("commit", guard.commit_demands),
        ("sigmoid_bce", guard.sigmoid_bce_demands),
        ("sigmoid_bce_backward", guard.sigmoid_bce_demands),
        ("linear_sigmoid_bce", guard.linear_sigmoid_bce_demands),
        ("linear_sigmoid_bce_backward", guard.linear_sigmoid_bce_demands),
        ("linear_cross_entropy_sum", guard.linear_cross_entropy_demands),
        ("glauber_step", guard.glauber_step_demands),
        ("linear_glauber_step", guard.linear_glauber_step_demands),
        ("glauber_step", guard.client_demands),
    ],
)
def test_a_lost_fast_path_fails(monkeypatch, op, group):
    """With the reference in its place; measured until one demand of the op's group is missed."""
    backends = import_module("ggm_kernels.backends")  # the package's own attribute is the function
    chosen = backends._best

    def best(name, device):
        return backends.kernel(name, "reference", device) if name == op else chosen(name, device)

    monkeypatch.setattr(backends, "_best", best)
    threads = torch.get_num_threads()
    torch.set_num_threads(guard.THREADS)
    try:
        missed = next((demand for demand in group() if not guard.judge(demand).passed), None)
    finally:
        torch.set_num_threads(threads)
    assert missed is not None


@needs_core
@pytest.mark.slow
def test_a_copy_of_the_weight_is_not_flat_in_the_vocabulary(monkeypatch):
    """As a cast of it would make one."""
    head = guard.problems.linear_sigmoid_bce.Head
    ours = head.ours

    def copying(self, *arguments, **options):
        return ours(dataclasses.replace(self, weight=self.weight * 1), *arguments, **options)

    monkeypatch.setattr(head, "ours", copying)
    forward = list(itertools.islice(guard.vocabulary_demands(), 2))
    assert [(demand.op, demand.unit) for demand in forward] == [
        ("linear_sigmoid_bce, forward", unit) for unit in ("time", "memory")
    ]
    assert not any(guard.judge(demand).passed for demand in forward)
