"""`linear_expected_embedding` by products of the library, on tiles of rows and tokens.

All sums have one order, those of products on the CPU, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ggm_kernels.native.compiled import Kernels
from ggm_kernels.native.ordered_products import add_product
from ggm_kernels.native.skinny_product import add_weighted_sums, skinny_product
from ggm_kernels.reference.precision import without_autocast

_TILE = 2**21  # logits at once: 8 MB, so that what is done to a product finds it in the cache
_ROWS = 512


def linear_expected_embedding(kernels: Kernels | None, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean embeddings [N, e] and the log-sum-exp of the logits [N]."""
    return _forward(*arguments)


def linear_expected_embedding_backward(
    kernels: Kernels | None, *arguments
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of hidden, weight, embedding and bias, each None where `needs` says so."""
    return _backward(*arguments)


@without_autocast
def _forward(hidden, weight, embedding, bias, softcap, scale):
    mean = hidden.new_empty(hidden.shape[0], embedding.shape[1])
    log_sum_exp = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    for rows in _parts(hidden.shape[0], _ROWS):
        logits_of = _Logits(hidden[rows], weight, bias, softcap, _column(scale, rows))
        largest = torch.full_like(log_sum_exp[rows], -torch.inf)
        mass = torch.zeros_like(largest)
        total = hidden.new_zeros(len(largest), embedding.shape[1], dtype=torch.float32)
        for tokens in _parts(weight.shape[0], _TILE // _ROWS):
            logits = logits_of(tokens)
            before, largest = largest, torch.maximum(largest, logits.amax(1))
            # where all is -inf so far: 0, of which exponentials are 0
            origin = torch.where(largest == -torch.inf, 0.0, largest)
            probs = logits.sub_(origin[:, None]).exp_()
            shrinks = (before - origin).exp_()
            mass.mul_(shrinks).add_(probs.sum(1))
            total.mul_(shrinks[:, None])
            _add_product(total, probs, embedding[tokens])
        mean[rows] = total.div_(mass[:, None]).to(mean.dtype)
        log_sum_exp[rows] = largest + mass.log()
    return mean, log_sum_exp


@without_autocast
def _backward(grad, mean, log_sum_exp, hidden, weight, embedding, bias, softcap, scale, needs):
    needs_hidden, needs_weight, needs_embedding, needs_bias = needs
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
    grad_weight = torch.empty_like(weight) if needs_weight else None
    grad_embedding = torch.empty_like(embedding) if needs_embedding else None
    grad_bias = weight.new_empty(weight.shape[0]) if needs_bias else None
    mean_worth = (grad.float() * mean.float()).sum(1, keepdim=True)
    for tokens in _parts(weight.shape[0], _TILE // _ROWS):
        sums = _TileSums(weight[tokens], embedding[tokens], needs)
        for rows in _parts(hidden.shape[0], _ROWS):
            logits_of = _Logits(hidden[rows], weight, bias, softcap, _column(scale, rows))
            logits = logits_of(tokens)
            slope = logits_of.slope(logits)
            probs = logits.sub_(log_sum_exp[rows, None]).exp_()
            sums.add_embedding(probs, grad[rows])
            if needs_hidden or needs_weight or needs_bias:
                worth = _product(grad[rows], embedding[tokens])
                grad_logits = worth.sub_(mean_worth[rows]).mul_(probs).mul_(slope)
                sums.add_weight(grad_logits, hidden[rows])
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], grad_logits, weight[tokens])
        for whole, part in (
            (grad_weight, sums.weight),
            (grad_embedding, sums.embedding),
            (grad_bias, sums.bias),
        ):
            if whole is not None and part is not None:
                whole[tokens] = part.to(whole.dtype)
    return (
        None if grad_hidden is None else grad_hidden.to(hidden.dtype),
        grad_weight,
        grad_embedding,
        grad_bias,
    )


class _Logits:
    """Logits of a block of rows, tile by tile: float32, to be written over."""

    def __init__(self, rows, weight, bias, softcap, scale) -> None:
        self._rows, self._weight, self._bias, self._softcap, self._scale = rows, weight, bias, softcap, scale

    def __call__(self, tokens: slice) -> torch.Tensor:
        logits = _product(self._rows, self._weight[tokens])
        if self._bias is not None:
            logits.add_(self._bias[tokens])
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits.mul_(self._scale)

    def slope(self, logits: torch.Tensor) -> torch.Tensor:
        """Their derivative by those that the head gives."""
        if self._softcap is None:
            return self._scale
        share = logits / (self._scale * self._softcap)
        return share.square_().neg_().add_(1.0).mul_(self._scale)


class _TileSums:
    """Gradients of the rows of a tile of the vocabulary, in float32, block of rows after block of rows."""

    def __init__(self, weight: torch.Tensor, embedding: torch.Tensor, needs) -> None:
        zeros = lambda like: torch.zeros_like(like, dtype=torch.float32)  # noqa: E731
        self.weight = zeros(weight) if needs[1] else None
        self.embedding = zeros(embedding) if needs[2] else None
        self.bias = zeros(weight[:, 0]) if needs[3] else None

    def add_embedding(self, probs: torch.Tensor, grad: torch.Tensor) -> None:
        if self.embedding is not None:
            _add_product(self.embedding, probs.T, grad)

    def add_weight(self, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
        if self.weight is not None:
            _add_product(self.weight, grad_logits.T, hidden)
        if self.bias is not None:
            self.bias.add_(grad_logits.sum(0))


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.T`` in float32; on a GPU half precision is left to its matrix units."""
    if rows.is_cuda:
        return (rows @ weight.T).float()
    rows, weight = rows.float(), weight.float()
    product = rows.new_empty(len(rows), len(weight))
    if not skinny_product(rows, weight, None, product):
        add_product(product.zero_(), rows, weight.T)
    return product


def _add_product(total: torch.Tensor, factor: torch.Tensor, rows: torch.Tensor) -> None:
    """Add ``factor @ rows`` to a float32 total; on a GPU likewise."""
    if not rows.is_cuda:
        rows = rows.float()
        if not add_weighted_sums(total, factor, rows):
            add_product(total, factor, rows)
    elif rows.dtype == torch.float32:
        total.addmm_(factor, rows)
    else:
        total.add_(factor.to(rows.dtype) @ rows)


def _column(scale: torch.Tensor, rows: slice) -> torch.Tensor:
    return scale[rows, None] if scale.dim() == 1 else scale


def _parts(size: int, most: int) -> Iterator[slice]:
    for start in range(0, size, most):
        yield slice(start, min(start + most, size))
