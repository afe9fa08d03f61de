"""Logits as the product of hidden states and a weight: the core's where rows are few, else the library's."""

from __future__ import annotations

import torch

from ggm_kernels.native.compiled import CPU, address

# Of fewer rows, a library that reads the weight once is as quick; of more or short ones, its packing pays.
_LEAST_ROWS, _MOST_ROWS = 8, 128
_LEAST_SIZE = 128


def linear_logits(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    """``linear(rows, weight, bias)`` in `out`, on the CPU. Rows of all matrices are contiguous."""
    if skinny_product(rows, weight, bias, out):
        return out
    if bias is None:
        return torch.mm(rows, weight.T, out=out)
    return torch.addmm(bias, rows, weight.T, out=out)


def skinny_product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> bool:
    """The same where the core is the quicker one; else False, and nothing is done.

    Its bits depend on the two rows of each logit alone: not on threads, nor on other rows.
    """
    count, size = rows.shape
    is_worth_it = _LEAST_ROWS <= count <= _MOST_ROWS and size >= _LEAST_SIZE and rows.dtype == torch.float32
    if not is_worth_it or CPU.core is None:
        return False
    product = CPU.core.SkinnyProduct(
        hidden=rows.data_ptr(),
        hidden_stride=rows.stride(0),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        bias=address(bias),
        logits=out.data_ptr(),
        logits_stride=out.stride(0),
        rows=count,
        tokens=weight.shape[0],
        hidden_size=size,
    )
    return CPU.core.cpu_skinny_product(product, torch.get_num_threads())
