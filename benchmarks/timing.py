"""Time and memory of a call, and ratios of calls measured side by side on a busy machine."""

import gc
import statistics
import threading
import time
from collections.abc import Callable

import torch


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_once(call: Callable[[], object]) -> float:
    """Time of one call."""
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def times_faster(
    rival: Callable[[], object],
    ours: Callable[[], object],
    seconds: float = 0.5,
    before: Callable[[], object] | None = None,
) -> float:
    """Median time of `rival` over that of `ours`, calls interleaved so that both see the same machine.

    `before` runs ahead of every call and is not timed: `empty_caches`, say.
    """
    taken: dict[Callable, list[float]] = {rival: [], ours: []}
    for call in taken:
        call()  # warm-up
    end = time.perf_counter() + seconds
    while not taken[ours] or time.perf_counter() < end:
        for call, times in taken.items():
            if before is not None:
                before()
            times.append(seconds_once(call))
    return statistics.median(taken[rival]) / statistics.median(taken[ours])


def empty_caches(device: torch.device) -> Callable[[], object]:
    """What leaves nothing of a call's inputs in a cache, as in training, where a network runs in between."""
    larger_than_any_cache = torch.zeros(2**28, dtype=torch.uint8, device=device)
    return lambda: larger_than_any_cache.add_(1)


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
