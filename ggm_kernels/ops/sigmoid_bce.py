"""The public `sigmoid_bce` and `linear_sigmoid_bce`: schema, checks, fake, autograd, backends."""

from __future__ import annotations

from numbers import Real

import torch

from ggm_kernels import checks
from ggm_kernels.backends import checks_values, kernel, requested
from ggm_kernels.ops.library import differentiate, register

_FLOATS = (*checks.FLOATS, torch.float64)
_WEIGHT_DTYPES = (*_FLOATS, torch.bool)
Weight = torch.Tensor | float


def sigmoid_bce(
    logits: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: Weight,
    noise_weight: Weight | None = None,
    offset: torch.Tensor | None = None,
    *,
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
    checks.tensor("logits", logits, dtypes=_FLOATS, dims=(2,))
    candidates = _check_candidates(candidates, "logits", logits)
    signal, noise = _check_weights(signal_weight, noise_weight, candidates, logits.dtype)
    offset = _check_constant("offset", offset, candidates)
    loss, _ = _op(logits, candidates, signal, noise, offset, _choose(backend, logits))
    return loss


def linear_sigmoid_bce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: Weight,
    noise_weight: Weight | None = None,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    *,
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
    candidates, signal_weight, noise_weight, offset, backend
        As in `sigmoid_bce`.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    sparse_grad : bool
        Whether the gradient of `weight` is a sparse tensor of N * C rows, as `torch.nn.Embedding` has it,
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
    Where all rows share one list of S candidates, a small matrix product computes the same loss,

        f = linear(hidden, weight[shared]).float()
        loss = (signal_weight * softplus(-f) + noise_weight * softplus(f)).sum(1)

    (with ``bias[shared]`` and ``offset[:, None]`` added to f), and the larger S is, the faster it is than
    this call on ``shared.expand(N, S)``. But PyTorch's gradient of ``weight[shared]`` writes all V rows,
    while this call leaves those that no candidate names untouched: with a small S this call is the faster
    one, backward included (benchmarks/test_sigmoid_bce.py times both).
    """
    hidden = checks.factors(hidden, weight, bias, dtypes=_FLOATS, dim=2)
    candidates = _check_candidates(candidates, "hidden", hidden)
    signal, noise = _check_weights(signal_weight, noise_weight, candidates, hidden.dtype)
    offset = _check_constant("offset", offset, candidates)
    if not isinstance(sparse_grad, bool):
        raise TypeError(f"sparse_grad: got {type(sparse_grad).__name__}; allowed: a bool")
    backend = _choose(backend, hidden)
    loss, _ = _linear_op(hidden, weight, candidates, signal, noise, bias, offset, sparse_grad, backend)
    return loss


def _choose(backend: str | None, values: torch.Tensor) -> str:
    if values.dtype != torch.float64:
        return requested(backend)
    if backend not in (None, "reference"):
        raise TypeError(f"backend: got {backend!r} for float64; allowed: 'reference'")
    return "reference"


def _check_candidates(candidates: torch.Tensor, rows_name: str, rows: torch.Tensor) -> torch.Tensor:
    checks.tensor("candidates", candidates, dtypes=checks.INTEGERS, dims=(1, 2))
    if candidates.shape[0] != rows.shape[0]:
        raise ValueError(
            f"candidates: got shape {tuple(candidates.shape)}; allowed: ({rows.shape[0]},) or "
            f"({rows.shape[0]}, C), as {rows_name} has {rows.shape[0]} rows"
        )
    checks.same_device("candidates", candidates, rows_name, rows)
    return candidates if candidates.dim() == 2 else candidates[:, None]


def _check_weights(
    signal: Weight, noise: Weight | None, candidates: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    signal = _check_weight("signal_weight", signal, candidates, accumulate)
    noise = 1.0 - signal if noise is None else _check_weight("noise_weight", noise, candidates, accumulate)
    return _expanded(signal, candidates.shape), _expanded(noise, candidates.shape)


def _expanded(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return weight if weight.shape == shape else weight.expand(shape)


def _check_weight(name: str, value: Weight, candidates: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, count = candidates.shape
    if not isinstance(value, torch.Tensor):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed: a tensor or a number")
        return torch.tensor(float(value), dtype=dtype, device=candidates.device)
    shapes = [(rows, count), (rows, 1), (1, count), (1, 1), (1,), (), *([(rows,)] if count == 1 else [])]
    checks.tensor(name, value, dtypes=_WEIGHT_DTYPES, shapes=shapes)
    value = _check_constant_tensor(name, value, candidates)
    value = value if value.dtype == dtype else value.to(dtype)
    return value[:, None] if value.dim() == 1 else value


def _check_constant(name: str, value: torch.Tensor | None, candidates: torch.Tensor) -> torch.Tensor | None:
    if value is None:
        return None
    checks.tensor(name, value, dtypes=_FLOATS, shapes=[candidates.shape[:1]])
    return _check_constant_tensor(name, value, candidates)


def _check_constant_tensor(name: str, value: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    checks.same_device(name, value, "candidates", candidates)
    if value.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires a gradient; allowed: a constant (detach it)")
    return value


def _check_values(candidates: torch.Tensor, vocab_size: int) -> None:
    if checks_values(candidates.device):
        named = candidates[:, 0] if candidates.shape[1] == 1 else candidates  # as a caller has them
        checks.values_in_range("candidates", named, 0, vocab_size, IndexError)


def _forward_like(rows: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return rows.new_empty(rows.shape[0], dtype=dtype), rows.new_empty(candidates.shape, dtype=dtype)


def _forward(op: str, backend: str, candidates: torch.Tensor, vocab_size: int, *inputs):
    """Loss and candidate logits by the backend that serves `op`; the latter are kept for the backward."""
    name, run = kernel(op, backend, candidates.device)
    if name != "cpu":
        _check_values(candidates, vocab_size)
    result = run(*inputs)
    if result is None:  # the cpu kernel met a bad candidate: name it
        _check_values(candidates, vocab_size)
        raise AssertionError("the cpu kernel refused candidates that the checks accept")
    return result


def entries_by_logit(candidates: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates [N, C] in the order of the logits that they name, those of one logit in their own order.

    Returns flat indices into logits [N, V], ascending but for the -1 of candidates that are out of range,
    and flat indices into `candidates`, both int64 [N * C]: what kernels sum repeated candidates by.
    """
    rows, count = candidates.shape
    tokens = candidates.to(torch.int64)
    starts = torch.arange(rows, device=candidates.device)[:, None]
    legal = (tokens >= 0) & (tokens < vocab_size)
    entries, order = torch.where(legal, starts * vocab_size + tokens, -1).sort(dim=1, stable=True)
    return entries.flatten(), (starts * count + order).flatten()


# sigmoid_bce


def _run(logits, candidates, signal_weight, noise_weight, offset, backend):
    inputs = (logits, candidates, signal_weight, noise_weight, offset)
    return _forward("sigmoid_bce", backend, candidates, logits.shape[1], *inputs)


def _fake(logits, candidates, signal_weight, noise_weight, offset, backend):
    return _forward_like(logits, candidates)


def _run_backward(
    grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype, backend
):
    _, run = kernel("sigmoid_bce_backward", backend, grad.device)
    return run(grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype)


def _fake_backward(
    grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype, backend
):
    return grad.new_empty(candidates.shape[0], vocab_size, dtype=dtype)


def _setup(ctx, inputs, output):
    logits, candidates, signal_weight, noise_weight, _, ctx.backend = inputs
    ctx.vocab_size, ctx.dtype = logits.shape[1], logits.dtype  # the logits themselves are not kept
    ctx.save_for_backward(*output, candidates, signal_weight, noise_weight)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    _, *saved = ctx.saved_tensors
    gradient = _backward_op(grad, *saved, ctx.vocab_size, ctx.dtype, ctx.backend)
    return gradient, None, None, None, None, None


register(
    "sigmoid_bce(Tensor logits, Tensor candidates, Tensor signal_weight, Tensor noise_weight, "
    "Tensor? offset, str backend) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward_op = register(
    "sigmoid_bce_backward(Tensor grad, Tensor candidate_logits, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, SymInt vocab_size, ScalarType dtype, str backend) -> Tensor",
    _run_backward,
    _fake_backward,
)
_op = differentiate("sigmoid_bce", _backward, _setup)


# linear_sigmoid_bce


def _linear_run(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, sparse_grad, backend):
    inputs = (hidden, weight, candidates, signal_weight, noise_weight, bias, offset)
    return _forward("linear_sigmoid_bce", backend, candidates, weight.shape[0], *inputs)


def _linear_fake(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, sparse_grad, backend):
    return _forward_like(hidden, candidates)


def _linear_run_backward(
    grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, needs, backend
):
    _, run = kernel("linear_sigmoid_bce_backward", backend, hidden.device)
    gradients = run(
        grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, tuple(needs)
    )
    # A schema has no optional outputs: what is not needed is an empty tensor.
    return tuple(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _linear_fake_backward(
    grad, candidate_logits, hidden, weight, candidates, signal_weight, noise_weight, needs, backend
):
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return tuple(
        hidden.new_empty(shape if needed else 0) for shape, needed in zip(shapes, needs, strict=True)
    )


def _linear_setup(ctx, inputs, output):
    hidden, weight, candidates, signal_weight, noise_weight, _, _, ctx.sparse_grad, ctx.backend = inputs
    ctx.save_for_backward(*output, hidden, weight, candidates, signal_weight, noise_weight)
    ctx.mark_non_differentiable(output[1])


def _linear_backward(ctx, grad, _):
    _, *saved = ctx.saved_tensors
    needs = [ctx.needs_input_grad[index] for index in (0, 1, 5)]
    sparse = ctx.sparse_grad and needs[1]
    dense = [needs[0], needs[1] and not sparse, needs[2]]
    gradients = _linear_backward_op(grad, *saved, dense, ctx.backend)
    hidden, weight, bias = (
        gradient if needed else None for gradient, needed in zip(gradients, dense, strict=True)
    )
    if sparse:
        weight = _sparse_weight_gradient(grad, *saved, backend=ctx.backend)
    return hidden, weight, None, None, None, bias, None, None, None


def _sparse_weight_gradient(
    grad: torch.Tensor,
    candidate_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: torch.Tensor,
    noise_weight: torch.Tensor,
    *,
    backend: str,
) -> torch.Tensor:
    """[N * C] rows: of each token that is named the sum, in float32, then zeros at the last of them.

    The dense gradient of a weight that has the rows named alone. Their number stays on the device.
    """
    tokens, order = candidates.flatten().long().sort(stable=True)
    is_first = torch.ones_like(tokens, dtype=torch.bool)
    is_first[1:] = tokens[1:] != tokens[:-1]
    rows = is_first.cumsum(0) - 1
    row_of_candidate = torch.empty_like(rows).scatter_(0, order, rows).view(candidates.shape)
    token_of_row = tokens[-1:].repeat(len(tokens)).scatter_(0, rows, tokens)
    named = weight.detach()[:1].expand(len(tokens), -1)  # its values are of no account, its shape is
    constants = (row_of_candidate, signal_weight, noise_weight)
    _, values, _ = _linear_backward_op(
        grad, candidate_logits, hidden, named, *constants, [False, True, False], backend
    )
    return torch.sparse_coo_tensor(token_of_row[None], values, weight.shape, check_invariants=False)


register(
    "linear_sigmoid_bce(Tensor hidden, Tensor weight, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, Tensor? bias, Tensor? offset, bool sparse_grad, str backend) -> (Tensor, Tensor)",
    _linear_run,
    _linear_fake,
)
_linear_backward_op = register(
    "linear_sigmoid_bce_backward(Tensor grad, Tensor candidate_logits, Tensor hidden, Tensor weight, "
    "Tensor candidates, Tensor signal_weight, Tensor noise_weight, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _linear_run_backward,
    _linear_fake_backward,
)
_linear_op = differentiate("linear_sigmoid_bce", _linear_backward, _linear_setup)
