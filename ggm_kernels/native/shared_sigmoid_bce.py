"""`shared_sigmoid_bce` in the compiled core: its kernels between products of the library."""

from __future__ import annotations

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address
from ggm_kernels.native.ordered_products import add_product
from ggm_kernels.products import shared_tiles


def shared_sigmoid_bce(kernels: Kernels, hidden, rows, bias, offset, weight) -> torch.Tensor:
    """What shared candidates add to the loss of each row, float64 [N]."""
    return shared_tiles.loss(hidden, rows, bias, offset, weight, _tile_kernels(kernels))


def shared_sigmoid_bce_backward(kernels: Kernels, row_gradient, hidden, rows, bias, offset, weight, needs):
    """Gradients of hidden, rows of the weight and bias, float32, each None where `needs` says so."""
    arguments = (row_gradient, hidden, rows, bias, offset, weight, needs)
    return shared_tiles.gradients(*arguments, _tile_kernels(kernels))


def _tile_kernels(kernels: Kernels) -> shared_tiles.TileKernels:
    core = kernels.core

    def loss(logits, bias, offset, weight, sums) -> None:
        tile = _tile(kernels, logits, bias, offset, weight)
        if kernels.are_device_code:
            core.cuda_shared_sigmoid_bce(tile, sums=sums.data_ptr(), **kernels.queue(logits.device))
        else:
            core.cpu_shared_sigmoid_bce(tile, sums=sums.data_ptr(), threads=torch.get_num_threads())

    def gradient(logits, bias, offset, weight, row_gradient, out) -> None:
        tile = _tile(kernels, logits, bias, offset, weight)
        gradients = core.SharedGradientTile(
            dtype=DTYPES[out.dtype], gradient=out.data_ptr(), row_stride=out.stride(0)
        )
        if kernels.are_device_code:
            queue = kernels.queue(logits.device)
            core.cuda_shared_sigmoid_bce_backward(tile, row_gradient.data_ptr(), gradients, **queue)
        else:
            threads = torch.get_num_threads()
            core.cpu_shared_sigmoid_bce_backward(tile, row_gradient.data_ptr(), gradients, threads=threads)

    if kernels.are_device_code:
        return shared_tiles.TileKernels(loss, gradient)
    return shared_tiles.TileKernels(loss, gradient, add_product)


def _tile(kernels: Kernels, logits, bias, offset, weight):
    return kernels.core.SharedTile(
        logits=logits.data_ptr(),
        row_stride=logits.stride(0),
        bias=address(bias),
        offset=address(offset),
        weight=weight.data_ptr(),
        rows=logits.shape[0],
        columns=logits.shape[1],
    )
