"""Time and memory of a call, and ratios of calls measured side by side on a busy machine."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

# More than the last cache of any device holds. On a GPU so much that adding to it should take longer than
# the CPU needs to submit the call that is timed, which then does not wait for the CPU.
_BEYOND_CACHE = {"cpu": 2**28, "cuda": 2**30}


class DeviceInstant:
    """Now, in the order of what a GPU was given to do. A difference is in seconds, and waits for both."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def __sub__(self, earlier: DeviceInstant) -> float:
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3


# The clock, for pytest-benchmark (`--benchmark-timer`), too: the GPU's own where there is one.
instant: Callable[[], Any] = DeviceInstant if torch.cuda.is_available() else time.perf_counter


def between_calls(device: torch.device) -> Callable[[], None] | None:
    """What runs ahead of each call that is timed, and is not timed: `empty_caches` on a GPU, else nothing.

    Calls that follow each other would find their inputs in a GPU's cache, where no training step leaves
    them. On CPUs most of what is timed is beyond cache anyway.
    """
    return empty_caches(device) if device.type == "cuda" else None


def seconds_once(call: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    """Time of one call; `before` runs ahead of it and is not timed."""
    if before is not None:
        before()
    start = instant()
    call()
    return instant() - start


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a warm call."""
    call()
    return statistics.median(seconds_once(call) for _ in range(rounds))


def times_faster(
    rival: Callable[[], object],
    ours: Callable[[], object],
    seconds: float = 0.5,
    before: Callable[[], object] | None = None,
) -> float:
    """Median time of `rival` over that of `ours`, calls interleaved so that both see the same machine.

    `before` runs ahead of every call and is not timed: `empty_caches`, say, or `between_calls`.
    """
    taken: dict[Callable, list[float]] = {rival: [], ours: []}
    for call in taken:
        call()  # warm-up
    end = time.perf_counter() + seconds
    while not taken[ours] or time.perf_counter() < end:
        for call, times in taken.items():
            times.append(seconds_once(call, before))
    return statistics.median(taken[rival]) / statistics.median(taken[ours])


@functools.cache
def empty_caches(device: torch.device) -> Callable[[], None]:
    """What leaves nothing of a call's inputs in a cache, as in training, where a network runs in between."""
    beyond_cache = torch.zeros(_BEYOND_CACHE[device.type], dtype=torch.uint8, device=device)

    def empty() -> None:
        beyond_cache.add_(1)

    return empty


def release_kept_memory() -> None:
    """Have the C library give back what it keeps of memory that was freed, where it is one that does (glibc).

    A call that is given kept memory takes none that `peak_extra_bytes` would see.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Most memory that one call of `call` holds beyond what was held before it.

    On the GPU from PyTorch's allocator; on the CPU from the process's resident pages, sampled every
    millisecond, so that lazily made pages count when they are made.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    import psutil  # machines that measure a GPU do without

    process, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(1e-3):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    peak[0] = max(peak[0], process.memory_info().rss)
    done.set()
    watcher.join()
    del result
    return max(0, peak[0] - before)
