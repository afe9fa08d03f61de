"""Products on the CPU that have the same bits on any number of threads.

A library may add the terms of a sum in an order that depends on the threads it might use. So a product is cut
into pieces by its shape alone, each is made by one thread, and threads take pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ggm_kernels.native.compiled import CPU

# Pieces: enough of them for some threads, but each worth packing its factors.
_PIECES = 8
_ROWS = 512
_COLUMNS = (128, 1024)


def run_apart(task: Callable[[int], None], count: int) -> None:
    """Call ``task(index)`` for each index below `count`, several at a time; torch has one thread in each."""
    threads = torch.get_num_threads()

    def apart(index: int) -> None:
        # Libraries cut a product up by the threads that they might use, also where they use but one.
        torch.set_num_threads(1)
        with torch.inference_mode():  # a thread of its own knows nothing of the caller's modes
            task(index)

    try:
        if CPU.core is None:  # tensors on the CPU of another backend
            for index in range(count):
                apart(index)
        else:
            CPU.core.cpu_run_tasks(apart, count, threads)
    finally:
        torch.set_num_threads(threads)


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add ``a @ b`` to `out`, all float32 matrices on the CPU."""
    rows, columns = out.shape
    least, most = _COLUMNS
    width = min(max(-(-columns // (64 * _PIECES)) * 64, least), most)
    pieces = [(row, column) for row in range(0, rows, _ROWS) for column in range(0, columns, width)]

    def add(index: int) -> None:
        row, column = pieces[index]
        there, those = slice(row, row + _ROWS), slice(column, column + width)
        out[there, those].addmm_(a[there], b[:, those])

    run_apart(add, len(pieces))
