"""The public `sigmoid_bce` and `linear_sigmoid_bce`: schema, checks, fake, autograd, backends."""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.backends import kernel, requested_for
from ggm_kernels.ops import shared_sigmoid_bce
from ggm_kernels.ops.candidates import (
    FLOATS,
    Shared,
    Weight,
    check_values,
    checked_candidates,
    checked_offset,
    checked_shared,
    checked_weights,
    with_shared,
)
from ggm_kernels.ops.library import differentiate, register


def sigmoid_bce(
    logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: Weight,
    noise_weight: Weight | None = None,
    *,
    offset: torch.Tensor | None = None,
    shared_candidates: torch.Tensor | None = None,
    shared_weight: Weight | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Weighted binary cross-entropy of a few candidate tokens per row, from full logits.

    ``f = logits.gather(1, candidates) + offset[:, None]``;
    ``loss = (signal_weight * softplus(-f) + noise_weight * softplus(f)).sum(1)``.

    Parameters
    ----------
    logits : torch.Tensor
        float32, bfloat16 or float16 (float64 with ``backend="reference"``), shape [N, V].
    candidates : torch.Tensor
        Token ids in [0, V), int32 or int64, shape [N] or [N, C]; repetitions count each time.
    signal_weight : torch.Tensor or float
        Weight of "signal" per candidate: shape of `candidates`, [N, 1], [1, C], one element, or a number.
        bool is 0, 1.
    noise_weight : torch.Tensor or float, optional
        Weight of "noise", likewise. Default 1 - signal_weight.
    offset : torch.Tensor, optional
        Added to every logit of a row, float [N].
    shared_candidates : torch.Tensor, optional
        Noise tokens that all rows have in common, int32 or int64 [S]: each row's loss gets
        ``(shared_weight * softplus(f)).sum()`` over them, too. Repetitions count each time, and so does a
        token that is also among the row's own candidates.
    shared_weight : torch.Tensor or float, optional
        Their weight: a number, one per candidate, [S] or [1, S], or one per row, [N] or [N, 1]. Where S = N,
        one dimension is per candidate. Default 1.
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor
        Loss per row, float32 [N] (float64 for float64 logits). Differentiable in `logits`, once: the gradient
        of the gradient is a NotImplementedError.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape or device, or a weight or offset that requires a gradient.
    IndexError
        For a candidate outside [0, V), on CPU, and on GPU if GGM_KERNELS_CHECK=1.

    Notes
    -----
    Source: binary classification of arXiv 2405.17035; weights and offset of every variant (summed over
    the noise, noise ratio) are derived in docs/mathematics.md.
    """
    checks.tensor("logits", logits, dtypes=FLOATS, dims=(2,))
    if logits.shape[1] == 0:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}; allowed: (N, V) with V of at least 1")
    candidates = checked_candidates(candidates, "logits", logits)
    signal, noise = checked_weights(signal_weight, noise_weight, candidates, logits.dtype)
    offset = checked_offset(offset, candidates)
    shared = checked_shared(shared_candidates, shared_weight, candidates, logits.dtype)
    loss, _ = _op(logits, candidates, signal, noise, offset, *shared, requested_for(logits, backend))
    return loss


def linear_sigmoid_bce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: Weight,
    noise_weight: Weight | None = None,
    *,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    shared_candidates: torch.Tensor | None = None,
    shared_weight: Weight | None = None,
    sparse_grad: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """`sigmoid_bce` on the logits ``hidden @ weight.T + bias``, of which only the candidates' are computed.

    Time and memory do not depend on V: no [N, V] tensor exists, forward or backward.

    Parameters
    ----------
    hidden : torch.Tensor
        float32, bfloat16 or float16 (float64 with ``backend="reference"``), shape [N, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d]. Under autocast `hidden` may be of another dtype
        and is cast: the rows of the weight are gathered in its own precision, and no copy of it is made.
    candidates, signal_weight, noise_weight, offset, shared_candidates, shared_weight, backend
        As in `sigmoid_bce`. C may be 0 where there are shared candidates alone.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    sparse_grad : bool
        Whether the gradient of `weight` is a sparse tensor of N * C + S rows, as `torch.nn.Embedding` has it,
        and not a dense [V, d]: for a weight that is not tied and an optimiser that takes it. Candidates that
        name one token are added up in float32, into one row; what rows are left over are zero. Where
        ``weight.grad`` is a dense tensor already (gradient accumulation), the rows are added in place and no
        second [V, d] is made. Not under torch.compile.

    Returns
    -------
    torch.Tensor
        Loss per row, float32 [N] (float64 for float64 inputs). Differentiable in `hidden`, `weight`, `bias`,
        once.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `sigmoid_bce`. TypeError, too, for a DTensor: under FSDP call this inside the forward of the
        module that is sharded, where its parameters are plain tensors.

    Notes
    -----
    Candidates of a row are gathered; those that are shared are one small matrix product,
    ``hidden @ weight[shared].T``, of which no more than a tile is held at a time, and the backward computes
    it again. A shared candidate costs a row d multiply-adds, as one of its own does, but no gather.
    """
    hidden = checks.factors(hidden, weight, bias, dtypes=FLOATS, dim=2)
    if weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: (V, d) with V of at least 1")
    candidates = checked_candidates(candidates, "hidden", hidden)
    signal, noise = checked_weights(signal_weight, noise_weight, candidates, hidden.dtype)
    offset = checked_offset(offset, candidates)
    shared = checked_shared(shared_candidates, shared_weight, candidates, hidden.dtype)
    if not isinstance(sparse_grad, bool):
        raise TypeError(f"sparse_grad: got {type(sparse_grad).__name__}; allowed: a bool")
    backend = requested_for(hidden, backend)
    constants = (candidates, signal, noise, bias, offset, *shared)
    loss, _ = _linear_op(hidden, weight, *constants, sparse_grad, backend)
    return loss


def _forward_like(
    rows: torch.Tensor, candidates: torch.Tensor, more: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    shape = (candidates.shape[0], candidates.shape[1] + more)
    return rows.new_empty(rows.shape[0], dtype=dtype), rows.new_empty(shape, dtype=dtype)


def _forward(op: str, backend: str, candidates: torch.Tensor, vocab_size: int, *inputs):
    """Loss and candidate logits by the backend that serves `op`; the latter are kept for the backward."""
    name, run = kernel(op, backend, candidates.device)
    if name != "cpu":
        check_values(candidates, vocab_size)
    result = run(*inputs)
    if result is None:  # the cpu kernel met a bad candidate: name it
        check_values(candidates, vocab_size)
        raise AssertionError("the cpu kernel refused candidates that the checks accept")
    return result


# sigmoid_bce


def _run(logits, candidates, signal_weight, noise_weight, offset, shared, row_weight, shared_weight, backend):
    vocab_size = logits.shape[1]
    if shared is None:
        inputs = (logits, candidates, signal_weight, noise_weight, offset)
        return _forward("sigmoid_bce", backend, candidates, vocab_size, *inputs)
    check_values(candidates, vocab_size)
    check_values(shared, vocab_size, "shared_candidates")
    loss, candidate_logits = _fake(
        logits, candidates, signal_weight, noise_weight, offset, shared, row_weight, shared_weight, backend
    )
    _, run = kernel("sigmoid_bce", backend, logits.device)
    constants = (candidates, signal_weight, noise_weight, Shared(shared, row_weight, shared_weight))
    for rows, all_candidates, signal, noise in with_shared(*constants):
        part = None if offset is None else offset[rows]
        loss[rows], candidate_logits[rows] = run(logits[rows], all_candidates, signal, noise, part)
    return loss, candidate_logits


def _fake(
    logits, candidates, signal_weight, noise_weight, offset, shared, row_weight, shared_weight, backend
):
    return _forward_like(logits, candidates, 0 if shared is None else shared.shape[0])


def _run_backward(
    grad, candidate_logits, candidates, signal_weight, noise_weight, shared, row_weight, shared_weight,
    vocab_size, dtype, backend,
):  # fmt: skip
    _, run = kernel("sigmoid_bce_backward", backend, grad.device)
    if shared is None:
        return run(grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype)
    grad_logits = grad.new_empty(candidates.shape[0], vocab_size, dtype=dtype)
    constants = (candidates, signal_weight, noise_weight, Shared(shared, row_weight, shared_weight))
    for rows, *all_candidates in with_shared(*constants):
        grad_logits[rows] = run(grad[rows], candidate_logits[rows], *all_candidates, vocab_size, dtype)
    return grad_logits


def _fake_backward(
    grad, candidate_logits, candidates, signal_weight, noise_weight, shared, row_weight, shared_weight,
    vocab_size, dtype, backend,
):  # fmt: skip
    return grad.new_empty(candidates.shape[0], vocab_size, dtype=dtype)


def _setup(ctx, inputs, output):
    logits, candidates, signal_weight, noise_weight, _, *shared, ctx.backend = inputs
    ctx.vocab_size, ctx.dtype = logits.shape[1], logits.dtype  # the logits themselves are not kept
    ctx.save_for_backward(*output, candidates, signal_weight, noise_weight, *shared)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    _, *saved = ctx.saved_tensors
    gradient = _backward_op(grad, *saved, ctx.vocab_size, ctx.dtype, ctx.backend)
    return gradient, *[None] * 8


register(
    "sigmoid_bce(Tensor logits, Tensor candidates, Tensor signal_weight, Tensor noise_weight, "
    "Tensor? offset, Tensor? shared_candidates, Tensor? shared_row_weight, Tensor? shared_weight, "
    "str backend) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward_op = register(
    "sigmoid_bce_backward(Tensor grad, Tensor candidate_logits, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, Tensor? shared_candidates, Tensor? shared_row_weight, Tensor? shared_weight, "
    "SymInt vocab_size, ScalarType dtype, str backend) -> Tensor",
    _run_backward,
    _fake_backward,
)
_op = differentiate("sigmoid_bce", _backward, _setup)


# linear_sigmoid_bce


def _linear_run(
    hidden, weight, candidates, signal_weight, noise_weight, bias, offset, shared, row_weight, shared_weight,
    sparse_grad, backend,
):  # fmt: skip
    if shared is not None:
        check_values(candidates, weight.shape[0])
        check_values(shared, weight.shape[0], "shared_candidates")
    inputs = (hidden, weight, candidates, signal_weight, noise_weight, bias, offset)
    loss, logits = _forward("linear_sigmoid_bce", backend, candidates, weight.shape[0], *inputs)
    if shared is not None:
        constants = Shared(shared, row_weight, shared_weight)
        loss = loss + shared_sigmoid_bce.loss(hidden, weight, bias, offset, constants, backend).to(loss.dtype)
    return loss, logits


def _linear_fake(
    hidden, weight, candidates, signal_weight, noise_weight, bias, offset, shared, row_weight, shared_weight,
    sparse_grad, backend,
):  # fmt: skip
    return _forward_like(hidden, candidates)


def _linear_run_backward(
    grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, shared_tokens,
    shared_hidden, shared_rows, shared_bias, needs, backend,
):  # fmt: skip
    _, run = kernel("linear_sigmoid_bce_backward", backend, hidden.device)
    shared = shared_sigmoid_bce.gradients(shared_tokens, shared_hidden, shared_rows, shared_bias, needs)
    gradients = run(
        grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, tuple(needs), shared
    )
    # A schema has no optional outputs: what is not needed is an empty tensor.
    return tuple(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _linear_fake_backward(
    grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, shared_tokens,
    shared_hidden, shared_rows, shared_bias, needs, backend,
):  # fmt: skip
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return tuple(
        hidden.new_empty(shape if needed else 0) for shape, needed in zip(shapes, needs, strict=True)
    )


def _linear_setup(ctx, inputs, output):
    *constants, bias, offset, shared, row_weight, shared_weight, ctx.sparse_grad, ctx.backend = inputs
    again = (None, None) if shared is None else (bias, offset)  # logits of shared candidates are not kept
    ctx.save_for_backward(*output, *constants, *again, shared, row_weight, shared_weight)
    ctx.mark_non_differentiable(output[1])


def _linear_backward(ctx, grad, _):
    _, *saved, bias, offset, shared, row_weight, shared_weight = ctx.saved_tensors
    needs = [ctx.needs_input_grad[index] for index in (0, 1, 5)]
    of_shared: tuple[torch.Tensor | None, ...] = (None, None, None, None)
    if shared is not None:
        _, hidden, weight, *_ = saved
        constants = (bias, offset, shared, row_weight, shared_weight)
        of_shared = _shared_backward_op(grad, hidden, weight, *constants, needs, ctx.backend)
    sparse = ctx.sparse_grad and needs[1]
    dense = [needs[0], needs[1] and not sparse, needs[2]]
    gradients = _linear_backward_op(grad, *saved, *of_shared, dense, ctx.backend)
    hidden, weight, bias = (
        gradient if needed else None for gradient, needed in zip(gradients, dense, strict=True)
    )
    if sparse:
        tokens, _, rows, _ = of_shared
        weight = _sparse_weight_gradient(
            grad, *saved, shared_tokens=tokens, shared_rows=rows, backend=ctx.backend
        )
    return hidden, weight, None, None, None, bias, *[None] * 6


def _sparse_weight_gradient(
    grad: torch.Tensor,
    candidate_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    *,
    shared_tokens: torch.Tensor | None,
    shared_rows: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    """[N * C + S] rows: of each token that is named the sum, in float32, then zeros at the last of them.

    The dense gradient of a weight that has the rows named alone. Their number stays on the device.
    """
    own = candidates.flatten().long()
    tokens, order = (own if shared_tokens is None else torch.cat([own, shared_tokens])).sort(stable=True)
    is_first = torch.ones_like(tokens, dtype=torch.bool)
    is_first[1:] = tokens[1:] != tokens[:-1]
    rows = is_first.cumsum(0) - 1
    row_of = torch.empty_like(rows).scatter_(0, order, rows)
    token_of_row = tokens[-1:].repeat(len(tokens)).scatter_(0, rows, tokens)
    named = weight.detach()[:1].expand(len(tokens), -1)  # its values are of no account, its shape is
    constants = (row_of[: len(own)].view(candidates.shape), signal_weight, noise_weight)
    shared: tuple[torch.Tensor | None, ...] = (None, None, None, None)
    if shared_tokens is not None:
        shared = (row_of[len(own) :], None, shared_rows, None)
    _, values, _ = _linear_backward_op(
        grad, candidate_logits, hidden, named, *constants, *shared, [False, True, False], backend
    )
    return torch.sparse_coo_tensor(token_of_row[None], values, weight.shape, check_invariants=False)


register(
    "linear_sigmoid_bce(Tensor hidden, Tensor weight, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, Tensor? bias, Tensor? offset, Tensor? shared_candidates, "
    "Tensor? shared_row_weight, Tensor? shared_weight, bool sparse_grad, str backend) -> (Tensor, Tensor)",
    _linear_run,
    _linear_fake,
)
_linear_backward_op = register(
    "linear_sigmoid_bce_backward(Tensor grad, Tensor candidate_logits, Tensor hidden, Tensor weight, "
    "Tensor candidates, Tensor signal_weight, Tensor noise_weight, Tensor? shared_tokens, "
    "Tensor? shared_hidden, Tensor? shared_rows, Tensor? shared_bias, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _linear_run_backward,
    _linear_fake_backward,
)
_shared_backward_op = register(
    "linear_sigmoid_bce_shared_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, "
    "Tensor? offset, Tensor shared_candidates, Tensor? shared_row_weight, Tensor shared_weight, "
    "bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    shared_sigmoid_bce.run_backward,
    shared_sigmoid_bce.fake_backward,
)
_linear_op = differentiate("linear_sigmoid_bce", _linear_backward, _linear_setup)
