"""`linear_cross_entropy` in the compiled core: its kernels between library products of tiles.

On the CPU each product is made by one thread, and threads take tiles: a library's product on several threads
may add in another order than on one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address
from ggm_kernels.native.ordered_products import run_apart
from ggm_kernels.products import logit_blocks
from ggm_kernels.products.logit_blocks import Problem, Scales, Sizes, Tile, device_sizes, problem_of
from ggm_kernels.reference.precision import without_autocast

_CPU_BUFFER_BYTES = 5 * 2**24  # of the logits of a block, unless that were too few rows for fast products
_CPU_ROWS = (128, 512)
_CPU_PARTIAL_SUMS = 8  # so many threads at a time add to the gradient of hidden states
_NEGLIGIBLE = 2.0**-40  # of the largest scale of a block


@without_autocast
def _losses(
    hidden,
    kernels: Kernels,
    weight,
    bias,
    targets,
    scale,
    logit_shift,
    shifted_token,
    softcap,
    z_loss,
    all_rows,
):
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    rows = _Counted(kernels, None if all_rows else scale != 0)
    outputs = logit_blocks.losses(_Between(kernels), rows.problem(problem), rows.of(scale), z_loss)
    return tuple(rows.all_of(output) for output in outputs)


def linear_cross_entropy(kernels: Kernels, hidden, *rest):
    """`linear_cross_entropy` on checked arguments: loss, log-sum-exp and its two summands."""
    return _losses(hidden, kernels, *rest)


@without_autocast
def _losses_and_gradients(
    hidden, kernels: Kernels, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss,
    all_rows, needs,
):  # fmt: skip
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    rows = _Counted(kernels, None if all_rows else scale != 0)
    outputs, gradients = logit_blocks.losses_and_gradients(
        _Between(kernels), rows.problem(problem), rows.of(scale), z_loss, needs
    )
    return *(rows.all_of(output) for output in outputs), *rows.all_hidden(gradients)


def linear_cross_entropy_sum(kernels: Kernels, hidden, *rest):
    """The same, and the gradients of the sum of the losses."""
    return _losses_and_gradients(hidden, kernels, *rest)


@without_autocast
def _gradients(
    softmax_scale, kernels: Kernels, target_scale, normaliser, hidden, weight, bias, targets, logit_shift,
    shifted_token, softcap, needs,
):  # fmt: skip
    problem = problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap)
    rows = _Counted(kernels, (softmax_scale != 0) | (target_scale != 0))
    scales = rows.of(softmax_scale), rows.of(target_scale)
    gradients = logit_blocks.gradients(
        _Between(kernels), rows.problem(problem), rows.of(normaliser), *scales, needs
    )
    return rows.all_hidden(gradients)


def linear_cross_entropy_backward(kernels: Kernels, softmax_scale, *rest):
    """Gradients of hidden, weight and bias, each None where `needs` says so."""
    return _gradients(softmax_scale, kernels, *rest)


class _Counted:
    """The rows that count, which alone are worked on; on a device, whose counts nobody waits for, all."""

    def __init__(self, kernels: Kernels, counts: torch.Tensor | None) -> None:
        self._index = None
        if counts is not None and not kernels.are_device_code and not bool(counts.all()):
            self._index = counts.nonzero()[:, 0]
            self._size = len(counts)

    def problem(self, problem: Problem) -> Problem:
        return problem if self._index is None else problem.rows(self._index)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Of values [.., N] those that count."""
        return values if self._index is None else values[..., self._index]

    def all_of(self, values: torch.Tensor) -> torch.Tensor:
        """Values [.., N], 0 where they do not count."""
        if self._index is None:
            return values
        return values.new_zeros(*values.shape[:-1], self._size).index_copy_(-1, self._index, values)

    def all_hidden(self, gradients):
        """Gradients of hidden, weight and bias, that of hidden for all rows."""
        hidden, *others = gradients
        if self._index is not None and hidden is not None:
            hidden = hidden.new_zeros(self._size, hidden.shape[1]).index_copy_(0, self._index, hidden)
        return hidden, *others


class _Between:
    """The kernels of csrc/cpu, or of csrc/cuda, between products."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels, self._core = kernels, kernels.core

    def sizes(self, problem: Problem) -> Sizes:
        if self._kernels.are_device_code:
            return device_sizes(problem)
        vocab_size, itemsize = problem.weight.shape[0], problem.product_dtype.itemsize
        rows = _multiple(_CPU_BUFFER_BYTES // (vocab_size * itemsize), *_CPU_ROWS)
        # As many tiles as threads, at the least, of what a small vocabulary gives.
        return Sizes(rows, _multiple(-(-vocab_size // 16), 256, 2048), _CPU_PARTIAL_SUMS)

    def run(self, task: Callable[[int], None], count: int) -> None:
        if self._kernels.are_device_code:
            for index in range(count):
                task(index)
        else:
            run_apart(task, count)

    def negligible(self, softmax_scale: torch.Tensor, target_scale: torch.Tensor) -> float:
        if self._kernels.are_device_code or softmax_scale.numel() == 0:
            return 0.0
        return _NEGLIGIBLE * float(torch.maximum(softmax_scale.abs(), target_scale.abs()).max())

    def sums(self, tile: Tile, top: torch.Tensor, mass: torch.Tensor, target_logit: torch.Tensor) -> None:
        of_tile = self._tile(tile)
        sums = self._core.CrossEntropySums(
            top=top.data_ptr(), mass=mass.data_ptr(), target_logit=target_logit.data_ptr()
        )
        if self._kernels.are_device_code:
            self._core.cuda_linear_cross_entropy(of_tile, sums, **self._kernels.queue(top.device))
        else:
            self._core.cpu_linear_cross_entropy(of_tile, sums)

    def gradients(self, tile: Tile, scales: Scales, bias: torch.Tensor | None) -> bool:
        of_tile = self._tile(tile)
        of_rows = self._core.CrossEntropyScales(
            top=scales.top.data_ptr(),
            log_mass=scales.log_mass.data_ptr(),
            softmax_scale=scales.softmax_scale.data_ptr(),
            target_scale=scales.target_scale.data_ptr(),
            negligible=scales.negligible,
            bias=address(bias),
        )
        if not self._kernels.are_device_code:
            return self._core.cpu_linear_cross_entropy_backward(of_tile, of_rows)
        self._core.cuda_linear_cross_entropy_backward(
            of_tile, of_rows, **self._kernels.queue(scales.top.device)
        )
        return True

    def _tile(self, tile: Tile):
        products, block = tile.products, tile.block
        return self._core.CrossEntropyTile(
            products=products.data_ptr(),
            dtype=DTYPES[products.dtype],
            row_stride=products.stride(0),
            rows=products.shape[0],
            token_begin=tile.begin,
            tokens=products.shape[1],
            bias=address(tile.bias),
            softcap=block.softcap,
            targets=block.targets.data_ptr(),
            logit_shift=address(block.logit_shift),
            shifted_token=address(block.shifted_token),
        )


def _multiple(size: int, least: int, most: int) -> int:
    """`size` as a multiple of 16 within bounds that are."""
    return min(max(size // 16 * 16, least), most)
