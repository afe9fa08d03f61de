"""`shared_sigmoid_bce` tile by tile: products of the library, and between them two kernels of a backend.

No more than a tile of logits [N, S] is held. All sums have one order, those of products on the CPU, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ggm_kernels.reference.precision import without_autocast

_CPU_TILE = (256, 1024)  # rows, candidates: logits of a megabyte, in cache
_DEVICE_TILE = (1024, 8192)


@dataclass(frozen=True)
class TileKernels:
    """What a backend does with the products of a tile.

    Attributes
    ----------
    loss : callable
        ``loss(logits, bias, offset, weight, sums)``: adds ``(weight * softplus(f)).sum(1)`` to sums,
        float64 [n], where f is logits, float32 [n, s], plus bias [s] and offset [n], both float32 or None.
    gradient : callable
        ``gradient(logits, bias, offset, weight, row_gradient, out)``: writes
        ``row_gradient[:, None] * weight * sigmoid(f)`` to out, which may be the logits.
    add_product : callable
        ``add_product(out, a, b)``: adds ``a @ b`` to out, all float32.
    """

    loss: Callable
    gradient: Callable
    add_product: Callable = torch.Tensor.addmm_


@without_autocast
def loss(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    weight: torch.Tensor,
    kernels: TileKernels,
) -> torch.Tensor:
    """Weighted sum of softplus over the candidates whose rows of the weight are given, float64 [N]."""
    sums = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    for tile in _Tiles(hidden, rows, bias, offset, weight, kernels):
        kernels.loss(tile.logits, tile.bias, tile.offset, tile.weight, sums[tile.rows])
    return sums


@without_autocast
def gradients(
    row_gradient: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    weight: torch.Tensor,
    needs: tuple[bool, bool, bool],
    kernels: TileKernels,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden [N, d], rows [S, d] and bias [S], float32, each None where `needs` says so."""
    scale = None
    if _is_rounded(hidden):  # gradients of 16 bits go into products: no larger than 1, or float16 loses them
        row_gradient, of_rows = _scaled(row_gradient)
        weight, of_candidates = _scaled(weight)
        scale = of_rows * of_candidates
    row_gradient = row_gradient.to(torch.float32).contiguous()
    tiles = _Tiles(hidden, rows, bias, offset, weight, kernels)
    sums = [
        torch.zeros(shape, dtype=torch.float32, device=hidden.device) if needed else None
        for shape, needed in zip((tiles.hidden.shape, tiles.weights.shape), needs[:2], strict=True)
    ]
    grad_bias = hidden.new_zeros(1, len(tiles.weights), dtype=torch.float32) if needs[2] else None
    grad_hidden, grad_rows = sums
    for tile in tiles:
        grad = _gradient_of(tile, row_gradient[tile.rows], kernels)
        if grad_hidden is not None:
            _add_product(grad_hidden[tile.rows], grad, tile.weights, kernels)
        if grad_rows is not None:
            _add_product(grad_rows[tile.candidates], grad.T, tile.hidden, kernels)
        if grad_bias is not None:
            # A product: a plain sum may add in another order on several threads.
            ones = grad.new_ones(1, grad.shape[0])
            _add_product(grad_bias[:, tile.candidates], ones, grad, kernels)
    found = grad_hidden, grad_rows, None if grad_bias is None else grad_bias[0]
    return tuple(_scaled_back(value, scale) for value in found)  # type: ignore[return-value]


def _scaled(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of size 1 at most, and what to multiply by."""
    if values.numel() == 0:
        return values, values.new_ones(())
    largest = values.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return values / largest, largest


def _scaled_back(value: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor | None:
    if value is None:
        return None
    return value.contiguous() if scale is None else value * scale


def _gradient_of(tile: _Tile, row_gradient: torch.Tensor, kernels: TileKernels) -> torch.Tensor:
    """Gradient of the tile's logits, as a factor of products."""
    dtype = tile.weights.dtype
    out = tile.logits if dtype == torch.float32 else torch.empty_like(tile.logits, dtype=dtype)
    kernels.gradient(tile.logits, tile.bias, tile.offset, tile.weight, row_gradient, out)
    return out


@dataclass(frozen=True)
class _Tile:
    """A tile and its operands."""

    rows: slice
    candidates: slice
    hidden: torch.Tensor
    weights: torch.Tensor
    logits: torch.Tensor
    bias: torch.Tensor | None
    offset: torch.Tensor | None
    weight: torch.Tensor


class _Tiles:
    """All tiles, row after row of them; each has its logits in the same memory."""

    def __init__(self, hidden, rows, bias, offset, weight, kernels: TileKernels) -> None:
        self.hidden, self.weights = hidden, _operand(rows)
        self._bias = None if bias is None else bias.to(torch.float32)
        self._offset = None if offset is None else offset.to(torch.float32).contiguous()
        self._weight = weight.contiguous()
        self._kernels = kernels

    def __iter__(self):
        if 0 in (len(self.hidden), len(self.weights)):
            return
        heights, widths = _CPU_TILE if self.hidden.device.type == "cpu" else _DEVICE_TILE
        height, width = _share(len(self.hidden), heights), _share(len(self.weights), widths)
        buffer = torch.empty(height * width, dtype=torch.float32, device=self.hidden.device)
        for row in range(0, len(self.hidden), height):
            rows = slice(row, min(row + height, len(self.hidden)))
            hidden = _operand(self.hidden[rows])
            for start in range(0, len(self.weights), width):
                candidates = slice(start, min(start + width, len(self.weights)))
                weights = self.weights[candidates]
                logits = buffer[: len(hidden) * len(weights)].view(len(hidden), len(weights))
                _multiply(logits, hidden, weights.T, self._kernels)
                yield _Tile(
                    rows, candidates, hidden, weights, logits,
                    None if self._bias is None else self._bias[candidates],
                    None if self._offset is None else self._offset[rows],
                    self._weight[candidates],
                )  # fmt: skip


def _share(whole: int, limit: int) -> int:
    """Size of equal parts of at most `limit`, as few as can be."""
    return -(-whole // -(-whole // limit))


def _is_rounded(matrix: torch.Tensor) -> bool:
    """Whether products take factors of 16 bits, as matrix units do; on the CPU they are float32."""
    return matrix.device.type != "cpu" and matrix.dtype.itemsize == 2


def _operand(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if _is_rounded(matrix) else matrix.to(torch.float32)


def _multiply(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, kernels: TileKernels) -> None:
    if a.dtype != torch.float32:
        out.copy_(_wide_product(a, b))
    elif a.device.type == "cpu":
        kernels.add_product(out.zero_(), a, b)
    else:
        torch.mm(a, b, out=out)


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, kernels: TileKernels) -> None:
    if a.dtype == torch.float32:
        kernels.add_product(out, a, b)
    else:
        out += _wide_product(a, b)


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of factors of 16 bits, in float32; torch before 2.8 rounds it first."""
    if hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).to(torch.float32)
