"""How every benchmark is timed and what it notes for the report."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch

from benchmarks.ceilings import Ceilings, Work
from benchmarks.timing import between_calls, peak_extra_bytes, times_faster
from ggm_kernels import backends

BACKENDS = ["reference", "cpu", "cuda", "triton"]
# A call longer than this is timed once: its noise is small beside the differences that it is there to show.
SLOW_SECONDS = 2.0
# And one that takes a good part of this is timed fewer times: the whole run should take minutes.
ROW_SECONDS = {"cpu": 4.0, "cuda": 1.0}
# On a GPU calls are short.
ROUNDS_ON_GPU = 50


@dataclass(frozen=True)
class Case:
    """One task of one size. Its rows are comparable, and stand in one table.

    Attributes
    ----------
    op : str
        The task, size left out.
    size : mapping of str to int
        Extents by their symbols, as {"N": 4096, "V": 50257}.
    device : torch.device
        Where.
    work : Work, optional
        The least that the task needs.
    rival : (str, callable), optional
        What every row's ratio, interleaved with it, is taken to, and its name.
    """

    op: str
    size: Mapping[str, int]
    device: torch.device
    work: Work | None = None
    rival: tuple[str, Callable[[], object]] | None = None

    @property
    def title(self) -> str:
        size = ", ".join(f"{symbol}={extent}" for symbol, extent in self.size.items())
        return f"{self.op}, {size}, {self.device.type}, {torch.get_num_threads()} threads"


def note_case(benchmark, case: Case, name: str, role: str) -> None:
    """Say what a row is.

    `role` is "ours", "reference" (ours, in plain PyTorch), "rival", or "floor" (it does less than the task).
    """
    benchmark.group = case.title
    benchmark.extra_info.update(op=case.op, size=dict(case.size), implementation=name, role=role)


def note_share(benchmark, ceilings: Ceilings, work: Work, seconds: float) -> None:
    """Note the rates achieved, and their share of what the machine can do."""
    least, bound = ceilings.least_seconds(work)
    notes = benchmark.extra_info
    if bound == "copy":
        notes["GB/s"] = _rounded(work.bytes / seconds / 1e9)
    if work.flops:
        notes["Gflop/s"] = _rounded(work.flops / seconds / 1e9)
    if work.flops and work.bytes:
        notes["flop_per_byte"] = _rounded(work.flops / work.bytes)
    notes["ceiling"] = bound
    notes["share_of_ceiling"] = _rounded(least / seconds)


@dataclass(frozen=True)
class Recorder:
    """The `record` of a benchmark: `record(case, name, call, role)`."""

    benchmark: object
    ceilings: Ceilings

    def __call__(
        self,
        case: Case,
        name: str,
        call: Callable[[], object],
        role: str = "rival",
        *,
        rounds: int = 10,
        per_second: Mapping[str, int] | None = None,
    ):
        """Time `call`; note memory, share of the ceiling and ratio to the case's rival; return its result.

        `per_second` names what one call handles how many of: tokens, say. Under --benchmark-disable `call`
        runs once, and nothing is noted.
        """
        benchmark, notes = self.benchmark, self.benchmark.extra_info
        note_case(benchmark, case, name, role)
        if benchmark.disabled:  # only whether it runs is asked
            return call()
        if case.device.type == "cuda":
            call()  # kernels are compiled and tuned in the first call
            rounds = max(rounds, ROUNDS_ON_GPU)
        started = time.perf_counter()
        notes["peak_extra_MB"] = round(peak_extra_bytes(call) / 1e6, 1)
        taken = time.perf_counter() - started
        slow = taken > SLOW_SECONDS
        rounds = 1 if slow else min(rounds, math.ceil(ROW_SECONDS[case.device.type] / taken))
        before = between_calls(case.device)
        result = benchmark.pedantic(call, setup=before, rounds=rounds)  # warm: memory came first
        median = benchmark.stats["median"]
        for what, count in (per_second or {}).items():
            notes[f"{what}/s"] = round(count / median)
        if case.work is not None:
            note_share(benchmark, self.ceilings, case.work, median)
        if case.rival is not None and case.rival[0] != name and not slow:
            notes[f"times_faster_than_{case.rival[0]}"] = _rounded(
                times_faster(case.rival[1], call, before=before)
            )
        return result


def name_of(backend: str) -> str:
    return f"ggm_kernels {backend}"


def role_of(backend: str) -> str:
    return "reference" if backend == "reference" else "ours"


def skip_unless_served(op: str, backend: str, device: torch.device) -> None:
    """Skip the benchmark that is running where `backend` cannot run `op`."""
    state = backends()[backend]
    if not state or op not in state.ops:
        pytest.skip(f"{backend}: {state.reason}")
    if backend in ("cpu", "cuda") and backend != device.type:
        pytest.skip(f"{backend}: the tensors are on {device.type}")


def best_backend(device: torch.device) -> str:
    """The native backend of `device` where it was built; else what serves without it."""
    available = backends()
    names = [device.type, *(["triton"] if device.type == "cuda" else []), "reference"]
    return next(name for name in names if available[name])


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")
