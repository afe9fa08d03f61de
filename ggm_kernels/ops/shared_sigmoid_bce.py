"""The noise candidates that all rows of `linear_sigmoid_bce` share: one product, forward and backward."""

from __future__ import annotations

import torch

from ggm_kernels.arguments.sigmoid_bce import SharedGradients
from ggm_kernels.backends import kernel
from ggm_kernels.ops.candidates import Shared


def merged(
    candidates: torch.Tensor, weight: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared candidates in ascending order, int64 [S], and their weights.

    Of equal ones the first has the sum, the others have 0; on the CPU they are left out. One that is out of
    range counts for nothing. The sums have one order.
    """
    tokens = candidates.to(torch.int64)
    weight = torch.where((tokens >= 0) & (tokens < vocab_size), weight, 0.0)
    tokens, order = tokens.clamp(0, vocab_size - 1).sort(stable=True)
    weight = weight[order]
    distance = 1
    while distance < len(tokens):  # each has the sum over the next `distance` of its equals
        equal = tokens[distance:] == tokens[:-distance]
        further = torch.where(equal, weight[distance:], 0.0)
        weight = weight + torch.nn.functional.pad(further, (0, distance))
        distance *= 2
    repeats = torch.zeros_like(tokens, dtype=torch.bool)
    repeats[1:] = tokens[1:] == tokens[:-1]
    if tokens.device.type != "cpu":  # their number is not to be waited for
        return tokens, weight.masked_fill(repeats, 0.0)
    return tokens[~repeats], weight[~repeats]


def loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    shared: Shared,
    backend: str,
) -> torch.Tensor:
    """What the shared candidates add to the loss of each row, float64 [N]."""
    tokens, candidate_weight = merged(shared.candidates, shared.candidate_weight, weight.shape[0])
    _, run = kernel("shared_sigmoid_bce", backend, hidden.device)
    rows, bias = _gathered(weight, bias, tokens)
    sums = run(hidden, rows, bias, offset, candidate_weight)
    if shared.row_weight is None:
        return sums
    # A weight of 0 switches its row off even where that is infinite.
    return torch.where(shared.row_weight == 0, 0.0, shared.row_weight * sums)


def run_backward(
    grad, hidden, weight, bias, offset, shared_candidates, row_weight, candidate_weight, needs, backend
):
    """Fields of `SharedGradients`; what is not needed is an empty tensor. The logits are computed again."""
    tokens, candidate_weight = merged(shared_candidates, candidate_weight, weight.shape[0])
    _, run = kernel("shared_sigmoid_bce_backward", backend, hidden.device)
    rows, bias = _gathered(weight, bias, tokens)
    row_gradient = grad if row_weight is None else grad * row_weight
    gradients = run(row_gradient, hidden, rows, bias, offset, candidate_weight, tuple(needs))
    of_hidden, *of_tokens = (hidden.new_empty(0) if value is None else value for value in gradients)
    more = len(shared_candidates) - len(tokens)  # merged ones: as repeats of the last
    if more:
        tokens = torch.cat([tokens, tokens[-1:].expand(more)])
        of_tokens = [
            torch.cat([value, value.new_zeros(more, *value.shape[1:])]) if needed else value
            for value, needed in zip(of_tokens, needs[1:], strict=True)
        ]
    return tokens, of_hidden, *of_tokens


def fake_backward(
    grad, hidden, weight, bias, offset, shared_candidates, row_weight, candidate_weight, needs, backend
):
    """Shapes and dtypes of `run_backward`."""
    size, dtype = shared_candidates.shape[0], candidate_weight.dtype
    shapes = (hidden.shape, (size, hidden.shape[1]), (size,))
    return hidden.new_empty(size, dtype=torch.int64), *(
        hidden.new_empty(shape, dtype=dtype) if needed else hidden.new_empty(0)
        for shape, needed in zip(shapes, needs, strict=True)
    )


def gradients(
    tokens: torch.Tensor | None,
    hidden: torch.Tensor | None,
    rows: torch.Tensor | None,
    bias: torch.Tensor | None,
    needs: list[bool],
) -> SharedGradients | None:
    """Results of `run_backward` as backends take them; None where nothing is shared."""
    if tokens is None:
        return None
    fields = (value if needed else None for value, needed in zip((hidden, rows, bias), needs, strict=True))
    return SharedGradients(tokens, *fields)


def _gathered(
    weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return weight.index_select(0, tokens), None if bias is None else bias.index_select(0, tokens)
