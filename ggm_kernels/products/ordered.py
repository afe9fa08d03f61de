"""Products on the CPU that have the same bits on any number of threads.

A library may add the terms of a sum in another order on several threads than on one. It does not where a sum
has few terms: so products are cut along their sums, and what is short beside that is made longer.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

NARROW = 16  # shorter sides are cut up whatever the sums are
# A sum of no more than these terms is never split; of products with a short side, of no more than fewer.
_TERMS, _FEW_TERMS = 256, 64
_WIDE = 128


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add ``a @ b`` to `out`, all float32 matrices on the CPU."""
    rows, columns = out.shape
    if rows == 0 or columns == 0:
        return
    if min(rows, columns) < NARROW:
        whole = out.new_zeros(max(rows, NARROW), max(columns, NARROW))
        add_product(whole, pad(a, (0, 0, 0, len(whole) - rows)), pad(b, (0, whole.shape[1] - columns)))
        out += whole[:rows, :columns]
        return
    terms = _TERMS if min(rows, columns) >= _WIDE else _FEW_TERMS
    for start in range(0, a.shape[1], terms):
        out.addmm_(a[:, start : start + terms], b[start : start + terms])
