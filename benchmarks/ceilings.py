"""What this machine can do at best: copies and matrix products, measured in the run that is compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import between_calls, seconds_once

# Beyond this a copy is in no cache: larger ones are taken to run at the same rate.
LARGEST_COPY = 2**28
SMALLEST_COPY = 2**16
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Work:
    """The least that a task needs, whoever does it and however.

    Attributes
    ----------
    bytes : int
        Read and written, each input and output once per pass; 0 where a cache may spare any part of it.
    flops : int
        Multiplications and additions that no way of doing it avoids.
    dtype : torch.dtype
        Type of what is multiplied.
    """

    bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32


def products_of(call: Callable[[], object]) -> int:
    """Multiplications and additions in the matrix products of `call`, which runs once."""
    # Attention as plain products: torch counts not all of its kernels.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


class Ceilings:
    """Measured rates of one device; each is measured when it is first asked for, and once.

    Parameters
    ----------
    device : torch.device
        Where the benchmarks run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: dict[int, float] = {}
        self._products: dict[torch.dtype, float] = {}

    def copy_rate(self, moved: int) -> float:
        """Bytes per second, read and written together, of a copy that moves as many bytes as the task.

        Of that size, because what fits in a cache is copied several times faster than what does not.
        """
        size = min(max(1 << (moved - 1).bit_length(), SMALLEST_COPY), LARGEST_COPY)
        if size not in self._copies:
            source = torch.zeros(size // 2, dtype=torch.uint8, device=self.device)
            target = torch.ones_like(source)
            self._copies[size] = size / _least_seconds(lambda: target.copy_(source), self.device)
        return self._copies[size]

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Flop per second of a large square product of `dtype`."""
        if dtype not in self._products:
            side = MATRIX_SIDE[self.device.type]
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            self._products[dtype] = 2 * side**3 / _least_seconds(lambda: a @ b, self.device)
        return self._products[dtype]

    def least_seconds(self, work: Work) -> tuple[float, str]:
        """Time of `work` at the ceiling that bounds it, and which that is: "copy" or "matrix"."""
        moving = work.bytes / self.copy_rate(work.bytes)
        if not work.flops:
            return moving, "copy"
        computing = work.flops / self.matrix_rate(work.dtype)
        return max((moving, "copy"), (computing, "matrix"))

    def measured(self) -> dict[str, dict[str, float]]:
        """All rates measured so far: GB/s by bytes moved, Gflop/s by type."""
        copies = {str(size): round(rate / 1e9, 2) for size, rate in sorted(self._copies.items())}
        products = {_name(dtype): round(rate / 1e9, 1) for dtype, rate in self._products.items()}
        return {"copy_GB_per_s": copies, "matrix_Gflop_per_s": products}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _least_seconds(
    call: Callable[[], object], device: torch.device, seconds: float = 0.3, rounds: int = 3
) -> float:
    """Shortest time of a call, under the conditions of the calls that are compared with it.

    The shortest: a ceiling is what the machine can do when nothing disturbs it.
    """
    call()
    before = between_calls(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < rounds or time.perf_counter() < end:
        taken.append(seconds_once(call, before))
    return min(taken)
