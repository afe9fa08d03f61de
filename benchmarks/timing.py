"""Timing that holds on a busy machine: ratios of calls measured side by side."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def times_faster(rival: Callable[[], object], ours: Callable[[], object], seconds: float = 0.5) -> float:
    """Median time of `rival` over that of `ours`, calls interleaved so that both see the same machine."""
    taken: dict[Callable, list[float]] = {rival: [], ours: []}
    for call in taken:
        call()  # warm-up
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[ours]) < 5:
        for call, times in taken.items():
            synchronise()
            start = time.perf_counter()
            call()
            synchronise()
            times.append(time.perf_counter() - start)
    return statistics.median(taken[rival]) / statistics.median(taken[ours])
