"""Products of few rows in the core, on the CPU: a library packs the other factor, which is for many rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from ggm_kernels.native.compiled import CPU, DTYPES, address

# Of more rows, or with short ones, packing pays, and sooner in 16 bits, which have units of their own.
_MOST_ROWS, _MOST_HALF_ROWS, _LEAST_SIZE = 128, 5, 128
# Of weighted sums, whose other factor lies as a library packs it. The core takes no fewer.
_LEAST_TOTALS, _MOST_TOTALS = 8, 32


def skinny_product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> bool:
    """Put ``linear(rows, weight, bias)`` into `out` where the core is the quicker one; else False.

    Whatever the threads and the other rows are, a logit has the same bits among up to seven rows, and the
    same among more.
    """
    most = _MOST_ROWS if rows.dtype == torch.float32 else _MOST_HALF_ROWS
    if rows.dtype not in DTYPES or not _is_for_the_core(rows, weight, most, rows.shape[1]):
        return False
    product = CPU.core.SkinnyProduct(
        factors=factors_of(CPU.core, rows, weight, bias),
        logits=out.data_ptr(),
        logits_stride=out.stride(0),
        rows=rows.shape[0],
        tokens=weight.shape[0],
    )
    return CPU.core.cpu_skinny_product(product, torch.get_num_threads())


def factors_of(core: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """What logits are the product of, in the form of the core; rows contiguous each."""
    return core.Factors(
        dtype=DTYPES[hidden.dtype],
        hidden=hidden.data_ptr(),
        hidden_stride=hidden.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=address(bias),
        hidden_size=hidden.shape[1],
    )


def add_weighted_sums(totals: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> bool:
    """Add ``weights @ rows`` to `totals` likewise, all float32."""
    count, terms = weights.shape
    if not _is_for_the_core(weights, rows, _MOST_TOTALS, rows.shape[1]):
        return False
    if count < _LEAST_TOTALS:
        padded = totals.new_zeros(_LEAST_TOTALS, totals.shape[1])
        is_done = add_weighted_sums(padded, pad(weights, (0, 0, 0, _LEAST_TOTALS - count)), rows)
        totals += padded[:count]
        return is_done
    sums = CPU.core.WeightedSums(
        weights=weights.data_ptr(),
        weight_stride=weights.stride(0),
        rows=rows.data_ptr(),
        row_stride=rows.stride(0),
        totals=totals.data_ptr(),
        total_stride=totals.stride(0),
        count=count,
        terms=terms,
        columns=rows.shape[1],
    )
    return CPU.core.cpu_add_weighted_sums(sums, torch.get_num_threads())


def _is_for_the_core(few: torch.Tensor, many: torch.Tensor, most: int, size: int) -> bool:
    are_rows_contiguous = few.stride(1) == 1 == many.stride(1)
    is_skinny = 1 <= few.shape[0] <= most and size >= _LEAST_SIZE
    return is_skinny and are_rows_contiguous and CPU.core is not None
