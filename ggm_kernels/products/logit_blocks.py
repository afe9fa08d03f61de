"""`linear_cross_entropy` by blocks of rows: products over tiles of logits, a backend's kernels between.

A block of rows has all its logits in one buffer of bounded size, which their gradient then takes over: of a
sum of losses each product is made once. The order of all sums is that of blocks and tiles, whose sizes depend
on shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ggm_kernels.products.partial_sums import PartialSums, add_product

Needs = tuple[bool, bool, bool]  # of the gradients of hidden, weight and bias
LossOutputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
GradientOutputs = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def held_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of gradients between forward and backward: float16 would lose what a scaler is to enlarge."""
    return torch.float32 if dtype == torch.float16 else dtype


@dataclass(frozen=True)
class Problem:
    """What the logits of N rows are made of.

    Attributes
    ----------
    hidden, weight : torch.Tensor
        [N, d] and [V, d], rows contiguous.
    bias : torch.Tensor or None
        float32 [V].
    targets : torch.Tensor
        int64 [N]; one outside [0, V) is nobody's.
    logit_shift, shifted_token : torch.Tensor or None
        float32 and int64 [N].
    softcap : float
        0 for none.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    logit_shift: torch.Tensor | None
    shifted_token: torch.Tensor | None
    softcap: float

    def rows(self, index) -> Problem:
        """The problem of some rows."""
        shift = None if self.logit_shift is None else self.logit_shift[index]
        shifted = None if self.shifted_token is None else self.shifted_token[index]
        return replace(
            self,
            hidden=self.hidden[index],
            targets=self.targets[index],
            logit_shift=shift,
            shifted_token=shifted,
        )

    @property
    def product_dtype(self) -> torch.dtype:
        """What products are rounded to; float16 holds too few small gradients."""
        return torch.float32 if self.hidden.dtype == torch.float16 else self.hidden.dtype


@dataclass(frozen=True)
class Tile:
    """Products of a block of rows and the tokens from `begin` on, [rows, tokens], without bias."""

    products: torch.Tensor
    begin: int
    block: Problem

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the tokens."""
        return (
            None
            if self.block.bias is None
            else self.block.bias[self.begin : self.begin + self.products.shape[1]]
        )


@dataclass(frozen=True)
class Scales:
    """Per row: the gradient of its logits is softmax_scale * softmax - target_scale * [is target]."""

    top: torch.Tensor
    log_mass: torch.Tensor
    softmax_scale: torch.Tensor
    target_scale: torch.Tensor
    negligible: float


@dataclass(frozen=True)
class Sizes:
    """Of a block of rows and a tile, and how many partial sums the gradient of hidden states is made of."""

    rows: int
    tokens: int
    partial_sums: int


_DEVICE_BUFFER_BYTES = 2**28  # of the logits of a block on a device
_DEVICE_TOKENS = 2**15  # of a tile there
_ROW_MULTIPLE = 64  # elements of a row of the buffer


def device_sizes(problem: Problem) -> Sizes:
    """On a device, where one product fills it."""
    vocab_size, itemsize = problem.weight.shape[0], problem.product_dtype.itemsize
    rows = min(max(_DEVICE_BUFFER_BYTES // (vocab_size * itemsize) // 128 * 128, 128), 8192)
    return Sizes(rows, _DEVICE_TOKENS, 1)


class Kernels(Protocol):
    """What a backend does between products."""

    def sizes(self, problem: Problem) -> Sizes:
        """How to cut a problem up."""

    def run(self, task: Callable[[int], None], count: int) -> None:
        """``task(0)`` to ``task(count - 1)``, which are independent."""

    def negligible(self, softmax_scale: torch.Tensor, target_scale: torch.Tensor) -> float:
        """Size of gradients of logits that a product of weight's gradient, or hidden's, may go without."""

    def sums(self, tile: Tile, top: torch.Tensor, mass: torch.Tensor, target_logit: torch.Tensor) -> None:
        """Per row the largest logit and the sum of exp(logit - largest); the target's logit where it is."""

    def gradients(self, tile: Tile, scales: Scales, bias: torch.Tensor | None) -> bool:
        """Put the gradient of the logits in place of the products, add its sums over rows to `bias`.

        Returns whether any of it is more than negligible.
        """


@dataclass(frozen=True)
class Losses:
    """Of each row: log-sum-exp in two summands, and the target's logit, all float32 [N]."""

    top: torch.Tensor
    log_mass: torch.Tensor
    target_logit: torch.Tensor

    @property
    def log_sum_exp(self) -> torch.Tensor:
        """Infinite where a logit is."""
        return torch.where(self.top == torch.inf, self.top, self.top + self.log_mass)

    def loss(self, scale: torch.Tensor, z_loss: float) -> torch.Tensor:
        """Loss per row; 0 where the scale is."""
        loss = (self.top - self.target_logit) + self.log_mass
        if z_loss > 0:
            loss = loss + z_loss * self.log_sum_exp.square()
        return torch.where(scale == 0, 0.0, scale * loss)


class Gradients:
    """Gradients of hidden, weight and bias, summed over blocks; of weight and bias in float32."""

    def __init__(
        self, problem: Problem, needs: Needs, held: torch.dtype, tiles: int, partial_sums: tuple[int, int]
    ) -> None:
        self._problem, self._needs, self._held = problem, needs, held
        weight, hidden = problem.weight, problem.hidden
        self.hidden = hidden.new_zeros(hidden.shape, dtype=held) if needs[0] else None
        self.partial_sums = hidden.new_empty(*partial_sums, hidden.shape[1], dtype=torch.float32)
        self.weight = weight.new_empty(weight.shape, dtype=torch.float32) if needs[1] else None
        self.bias = weight.new_zeros(weight.shape[0], dtype=torch.float32) if needs[2] else None
        self._begun = [False] * tiles

    def add_to_weight(self, index: int, tokens: slice, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the product of a tile."""
        if self.weight is None:
            return
        add_product(self.weight[tokens], gradient.T, hidden, self._begun[index])
        self._begun[index] = True

    def finish(self, tiles: list[slice]) -> GradientOutputs:
        """Gradients of hidden, weight and bias as they are held."""
        for begun, tokens in zip(self._begun, tiles, strict=True):
            if self.weight is not None and not begun:
                self.weight[tokens] = 0
        weight = None if self.weight is None else self.weight.to(self._held)
        return self.hidden, weight, None if self.bias is None else self.bias.to(self._held)


def problem_of(hidden, weight, bias, targets, logit_shift, shifted_token, softcap: float) -> Problem:
    """The problem of checked arguments."""
    return Problem(
        hidden if hidden.stride(-1) == 1 else hidden.contiguous(),
        weight if weight.stride(-1) == 1 else weight.contiguous(),
        None if bias is None else bias.to(torch.float32).contiguous(),
        targets.to(torch.int64).contiguous(),
        None if logit_shift is None else logit_shift.contiguous(),
        None if shifted_token is None else shifted_token.to(torch.int64).contiguous(),
        softcap,
    )


@torch.no_grad()
def losses(kernels: Kernels, problem: Problem, scale: torch.Tensor, z_loss: float) -> LossOutputs:
    """Loss, log-sum-exp and its two summands of every row."""
    return _outputs(Walk(kernels, problem).losses(), scale, z_loss)


@torch.no_grad()
def losses_and_gradients(
    kernels: Kernels, problem: Problem, scale: torch.Tensor, z_loss: float, needs: Needs
) -> tuple[LossOutputs, GradientOutputs]:
    """The same, and the gradients of the sum of the losses, as they are held until the backward."""
    walk = Walk(kernels, problem)
    if not any(needs):
        return _outputs(walk.losses(), scale, z_loss), (None, None, None)

    def softmax_scale(losses: Losses, rows: slice) -> torch.Tensor:
        if z_loss == 0:
            return scale[rows]
        return torch.where(scale[rows] == 0, 0.0, scale[rows] * (1 + 2 * z_loss * losses.log_sum_exp))

    losses, gradients = walk.losses_and_gradients(softmax_scale, scale, needs)
    return _outputs(losses, scale, z_loss), gradients


@torch.no_grad()
def gradients(
    kernels: Kernels,
    problem: Problem,
    normaliser: torch.Tensor,
    softmax_scale: torch.Tensor,
    target_scale: torch.Tensor,
    needs: Needs,
) -> GradientOutputs:
    """Gradients of hidden, weight and bias, each None where `needs` says so."""
    return Walk(kernels, problem).gradients(normaliser, softmax_scale, target_scale, needs)


def _outputs(losses: Losses, scale: torch.Tensor, z_loss: float) -> LossOutputs:
    return losses.loss(scale, z_loss), losses.log_sum_exp, torch.stack([losses.top, losses.log_mass])


class Walk:
    """A walk through the blocks of a problem."""

    def __init__(self, kernels: Kernels, problem: Problem) -> None:
        self._kernels, self._problem = kernels, problem
        self._sizes = sizes = kernels.sizes(problem)
        rows, self._vocab_size = problem.hidden.shape[0], problem.weight.shape[0]
        self._blocks = [slice(i, min(i + sizes.rows, rows)) for i in range(0, rows, sizes.rows)]
        starts = range(0, self._vocab_size, sizes.tokens)
        self._tiles = [slice(i, min(i + sizes.tokens, self._vocab_size)) for i in starts]
        # Rows of whole lines: a library multiplies matrices of odd rows by slower kernels.
        shape = min(sizes.rows, rows), -(-self._vocab_size // _ROW_MULTIPLE) * _ROW_MULTIPLE
        buffer = problem.hidden.new_empty(shape, dtype=problem.product_dtype)
        self._buffer = buffer[:, : self._vocab_size]

    def losses(self) -> Losses:
        """Log-sum-exp and target's logit of every row."""
        parts = [self._sums(*self._block(rows)) for rows in self._blocks]
        return self._joined(parts)

    def losses_and_gradients(
        self, softmax_scale: Callable[[Losses, slice], torch.Tensor], target_scale: torch.Tensor, needs: Needs
    ) -> tuple[Losses, GradientOutputs]:
        """The same, and gradients; the scale of a block's softmax may depend on its log-sum-exp."""
        gradients, parts = self._new_gradients(needs), []
        for rows in self._blocks:
            block, hidden = self._block(rows)
            sums = self._sums(block, hidden)
            parts.append(sums)
            scales = self._scales(sums.top, sums.log_mass, softmax_scale(sums, rows), target_scale[rows])
            self._gradients(rows, block, hidden, scales, gradients, has_products=True)
        return self._joined(parts), gradients.finish(self._tiles)

    def gradients(
        self, normaliser: torch.Tensor, softmax_scale: torch.Tensor, target_scale: torch.Tensor, needs: Needs
    ) -> GradientOutputs:
        """Gradients alone, of rows whose log-sum-exp is known."""
        gradients = self._new_gradients(needs, self._problem.hidden.dtype)
        for rows in self._blocks:
            sums = normaliser[0, rows], normaliser[1, rows]
            scales = self._scales(*sums, softmax_scale[rows], target_scale[rows])
            self._gradients(rows, *self._block(rows), scales, gradients, has_products=False)
        return gradients.finish(self._tiles)

    def _new_gradients(self, needs: Needs, held: torch.dtype | None = None) -> Gradients:
        tiles, held = len(self._tiles), held or held_dtype(self._problem.hidden.dtype)
        count = min(self._sizes.partial_sums, tiles) if needs[0] else 0
        return Gradients(self._problem, needs, held, tiles, (count, len(self._buffer)))

    def _partial_sums(self, sums: torch.Tensor, block: Problem) -> PartialSums:
        """Of the gradient of a block's hidden states."""

        def factors(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self._tiles[index]
            return self._tile(block, tokens).products, self._weight(tokens)

        return PartialSums(sums[:, : len(block.hidden)], factors)

    def _block(self, rows: slice) -> tuple[Problem, torch.Tensor]:
        """Of some rows, with their hidden states as factors of products."""
        block = self._problem.rows(rows)
        return block, block.hidden.to(self._problem.product_dtype)

    def _tile(self, block: Problem, tokens: slice) -> Tile:
        return Tile(self._buffer[: block.hidden.shape[0], tokens], tokens.start, block)

    def _multiply(self, tile: Tile, tokens: slice, hidden: torch.Tensor) -> None:
        torch.mm(hidden, self._weight(tokens).T, out=tile.products)

    def _weight(self, tokens: slice) -> torch.Tensor:
        return self._problem.weight[tokens].to(self._problem.product_dtype)

    def _sums(self, block: Problem, hidden: torch.Tensor) -> Losses:
        rows = hidden.shape[0]
        shape = len(self._tiles), rows
        top, mass = (hidden.new_empty(shape, dtype=torch.float32) for _ in range(2))
        target_logit = hidden.new_full((rows,), torch.nan, dtype=torch.float32)

        def task(index: int) -> None:
            tile = self._tile(block, self._tiles[index])
            self._multiply(tile, self._tiles[index], hidden)
            self._kernels.sums(tile, top[index], mass[index], target_logit)

        self._kernels.run(task, len(self._tiles))
        largest = top.amax(0)
        finite = torch.where(largest == -torch.inf, 0.0, largest)
        mass = (mass * (top - finite).exp()).sum(0)
        return Losses(finite, mass.log(), target_logit)

    def _joined(self, parts: list[Losses]) -> Losses:
        if not parts:
            nothing = self._problem.hidden.new_empty(0, dtype=torch.float32)
            return Losses(nothing, nothing, nothing)
        names = ("top", "log_mass", "target_logit")
        return Losses(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def _scales(self, top, log_mass, softmax_scale, target_scale) -> Scales:
        return Scales(
            top.contiguous(), log_mass.contiguous(), softmax_scale.contiguous(), target_scale.contiguous(),
            self._kernels.negligible(softmax_scale, target_scale),
        )  # fmt: skip

    def _gradients(
        self,
        rows: slice,
        block: Problem,
        hidden: torch.Tensor,
        scales: Scales,
        gradients: Gradients,
        has_products: bool,
    ) -> None:
        # Of a row that does not count the gradients are 0, and its hidden states may be NaN.
        counts = (scales.softmax_scale != 0) | (scales.target_scale != 0)
        counted = hidden.masked_fill(~counts[:, None], 0.0)
        out = None if gradients.hidden is None else gradients.hidden[rows]
        sums = None if out is None else self._partial_sums(gradients.partial_sums, block)

        def of_tile(index: int) -> None:
            tokens = self._tiles[index]
            tile = self._tile(block, tokens)
            if not has_products:
                self._multiply(tile, tokens, hidden)
            bias = None if gradients.bias is None else gradients.bias[tokens]
            matters = self._kernels.gradients(tile, scales, bias)
            if matters:
                gradients.add_to_weight(index, tokens, tile.products, counted)
            if sums is not None:
                sums.ready(index, matters)

        self._kernels.run(of_tile, len(self._tiles))
        if out is not None and sums is not None:
            sums.total_to(out)
