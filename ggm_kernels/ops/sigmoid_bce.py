"""The public `sigmoid_bce` and `linear_sigmoid_bce`: schema, checks, fake, autograd, backends."""

from __future__ import annotations

import torch

from ggm_kernels import checks
from ggm_kernels.backends import AUTO, checks_values, kernel
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
        Weight of "signal" per candidate: shape of `candidates`, [N, 1], [1, C], or a number. bool is 0, 1.
    noise_weight : torch.Tensor or float, optional
        Weight of "noise", likewise. Default 1 - signal_weight.
    offset : torch.Tensor, optional
        Added to every logit of a row, float [N].
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor
        Loss per row, float32 [N] (float64 for float64 logits). Differentiable in `logits`.

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
    return _op(logits, candidates, signal, noise, offset, _choose(backend, logits))


def linear_sigmoid_bce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    signal_weight: Weight,
    noise_weight: Weight | None = None,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """`sigmoid_bce` on the logits ``hidden @ weight.T + bias``, of which only the candidates' are computed.

    Time and memory do not depend on V: no [N, V] tensor exists, forward or backward.

    Parameters
    ----------
    hidden : torch.Tensor
        float32, bfloat16 or float16 (float64 with ``backend="reference"``), shape [N, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d].
    candidates, signal_weight, noise_weight, offset, backend
        As in `sigmoid_bce`.
    bias : torch.Tensor, optional
        dtype of `hidden`, shape [V].

    Returns
    -------
    torch.Tensor
        Loss per row, float32 [N] (float64 for float64 inputs). Differentiable in `hidden`, `weight`, `bias`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `sigmoid_bce`.
    """
    checks.tensor("hidden", hidden, dtypes=_FLOATS, dims=(2,))
    checks.tensor("weight", weight, dtypes=(hidden.dtype,), dims=(2,))
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: (V, {hidden.shape[1]})")
    checks.same_device("weight", weight, "hidden", hidden)
    candidates = _check_candidates(candidates, "hidden", hidden)
    signal, noise = _check_weights(signal_weight, noise_weight, candidates, hidden.dtype)
    if bias is not None:
        checks.tensor("bias", bias, dtypes=(hidden.dtype,), shapes=[weight.shape[:1]])
        checks.same_device("bias", bias, "hidden", hidden)
    offset = _check_constant("offset", offset, candidates)
    return _linear_op(hidden, weight, candidates, signal, noise, bias, offset, _choose(backend, hidden))


def _choose(backend: str | None, values: torch.Tensor) -> str:
    if backend is None:
        return "reference" if values.dtype == torch.float64 else AUTO
    if values.dtype == torch.float64 and backend != "reference":
        raise TypeError(f"backend: got {backend!r} for float64; allowed: 'reference'")
    return backend


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
    signal = _spread("signal_weight", signal, candidates, accumulate)
    if noise is None:
        return signal, 1.0 - signal
    return signal, _spread("noise_weight", noise, candidates, accumulate)


def _spread(name: str, value: Weight, candidates: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, count = candidates.shape
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(float(value), dtype=dtype, device=candidates.device)
        return value.expand(rows, count)
    shapes = [(rows, count), (rows, 1), (1, count), ()]
    if count == 1:
        shapes.append((rows,))
    checks.tensor(name, value, dtypes=_WEIGHT_DTYPES, shapes=shapes)
    value = _check_constant_tensor(name, value, candidates).to(dtype)
    if value.dim() == 1:
        value = value[:, None]
    return value.expand(rows, count)


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
        checks.values_in_range("candidates", candidates, 0, vocab_size, IndexError)


def _loss_like(rows: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return rows.new_empty(rows.shape[0], dtype=dtype)


# sigmoid_bce


def _run(logits, candidates, signal_weight, noise_weight, offset, backend):
    _, run = kernel("sigmoid_bce", backend, logits.device)
    _check_values(candidates, logits.shape[1])
    return run(logits, candidates, signal_weight, noise_weight, offset)


def _fake(logits, candidates, signal_weight, noise_weight, offset, backend):
    return _loss_like(logits)


def _run_backward(grad, logits, candidates, signal_weight, noise_weight, offset, backend):
    _, run = kernel("sigmoid_bce_backward", backend, logits.device)
    return run(grad, logits, candidates, signal_weight, noise_weight, offset)


def _fake_backward(grad, logits, candidates, signal_weight, noise_weight, offset, backend):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return _backward_op(grad, *ctx.saved_tensors, ctx.backend), *[None] * 5


_op = register(
    "sigmoid_bce(Tensor logits, Tensor candidates, Tensor signal_weight, Tensor noise_weight, "
    "Tensor? offset, str backend) -> Tensor",
    _run,
    _fake,
)
_backward_op = register(
    "sigmoid_bce_backward(Tensor grad, Tensor logits, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, Tensor? offset, str backend) -> Tensor",
    _run_backward,
    _fake_backward,
)
differentiate("sigmoid_bce", _backward, _setup)


# linear_sigmoid_bce


def _linear_run(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, backend):
    _, run = kernel("linear_sigmoid_bce", backend, hidden.device)
    _check_values(candidates, weight.shape[0])
    return run(hidden, weight, candidates, signal_weight, noise_weight, bias, offset)


def _linear_fake(hidden, weight, candidates, signal_weight, noise_weight, bias, offset, backend):
    return _loss_like(hidden)


def _linear_run_backward(
    grad, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, needs, backend
):
    _, run = kernel("linear_sigmoid_bce_backward", backend, hidden.device)
    gradients = run(grad, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, tuple(needs))
    # A schema has no optional outputs: what is not needed is an empty tensor.
    return tuple(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _linear_fake_backward(
    grad, hidden, weight, candidates, signal_weight, noise_weight, bias, offset, needs, backend
):
    return tuple(
        torch.empty_like(source, memory_format=torch.contiguous_format) if needed else hidden.new_empty(0)
        for source, needed in zip((hidden, weight, bias), needs, strict=True)
    )


def _linear_setup(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _linear_backward(ctx, grad):
    needs = [ctx.needs_input_grad[index] for index in (0, 1, 5)]
    gradients = _linear_backward_op(grad, *ctx.saved_tensors, needs, ctx.backend)
    hidden, weight, bias = (
        gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
    )
    return hidden, weight, None, None, None, bias, None, None


_linear_op = register(
    "linear_sigmoid_bce(Tensor hidden, Tensor weight, Tensor candidates, Tensor signal_weight, "
    "Tensor noise_weight, Tensor? bias, Tensor? offset, str backend) -> Tensor",
    _linear_run,
    _linear_fake,
)
_linear_backward_op = register(
    "linear_sigmoid_bce_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor candidates, "
    "Tensor signal_weight, Tensor noise_weight, Tensor? bias, Tensor? offset, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _linear_run_backward,
    _linear_fake_backward,
)
differentiate("linear_sigmoid_bce", _linear_backward, _linear_setup)
