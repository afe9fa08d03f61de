"""Products of few rows in the core, on the CPU: a library packs the other factor, which is for many rows."""

from __future__ import annotations

import torch

from ggm_kernels.native.compiled import CPU, address

# Of fewer rows a library reads the other factor as it lies, too; of more, or with short ones, packing pays.
_LEAST_ROWS, _MOST_ROWS = 8, 128
_MOST_TOTALS = 32  # of weighted sums, whose other factor a library finds packed
_LEAST_SIZE = 128


def skinny_product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> bool:
    """Put ``linear(rows, weight, bias)`` into `out` where the core is the quicker one; else False.

    Rows of all matrices are contiguous. The bits of a logit depend on its two rows alone: not on threads, nor
    on other rows.
    """
    if not _is_skinny(rows, _MOST_ROWS, rows.shape[1]):
        return False
    product = CPU.core.SkinnyProduct(
        hidden=rows.data_ptr(),
        hidden_stride=rows.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=address(bias),
        logits=out.data_ptr(),
        logits_stride=out.stride(0),
        rows=rows.shape[0],
        tokens=weight.shape[0],
        hidden_size=rows.shape[1],
    )
    return CPU.core.cpu_skinny_product(product, torch.get_num_threads())


def add_weighted_sums(totals: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> bool:
    """Add ``weights @ rows`` to `totals` likewise: float32, rows of all matrices contiguous."""
    if not _is_skinny(weights, _MOST_TOTALS, rows.shape[1]):
        return False
    sums = CPU.core.WeightedSums(
        weights=weights.data_ptr(),
        weight_stride=weights.stride(0),
        rows=rows.data_ptr(),
        row_stride=rows.stride(0),
        totals=totals.data_ptr(),
        total_stride=totals.stride(0),
        count=weights.shape[0],
        terms=rows.shape[0],
        columns=rows.shape[1],
    )
    return CPU.core.cpu_add_weighted_sums(sums, torch.get_num_threads())


def _is_skinny(factor: torch.Tensor, most_rows: int, size: int) -> bool:
    are_few = _LEAST_ROWS <= factor.shape[0] <= most_rows and size >= _LEAST_SIZE
    return are_few and factor.dtype == torch.float32 and CPU.core is not None
