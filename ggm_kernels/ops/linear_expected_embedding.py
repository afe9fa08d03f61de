"""The public `linear_expected_embedding`: schema, checks, fake, autograd, backends."""

from __future__ import annotations

import math

import torch

from ggm_kernels import checks
from ggm_kernels.backends import checks_values, kernel, requested_for
from ggm_kernels.ops.library import differentiate, register

_FLOATS = (*checks.FLOATS, torch.float64)


def linear_expected_embedding(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    embedding: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    temperature: float | torch.Tensor = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Mean embedding of a token under a linear head: ``softmax(hidden @ weight.T + bias) @ embedding``.

    Self-conditioning of a diffusion model, a soft prompt, a straight-through step: no [N, V] tensor exists,
    forward or backward.

    Parameters
    ----------
    hidden : torch.Tensor
        float32, bfloat16 or float16 (float64 with ``backend="reference"``), shape [N, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d]. Under autocast `hidden`, `weight`, `embedding` and
        `bias` are cast as those of ``linear`` are.
    embedding : torch.Tensor
        What the mean is of, dtype of `hidden`, shape [V, e]; may be `weight` itself.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)`` before all else.
    temperature : float or torch.Tensor
        Logits are divided by it, above 0: a number, or floating [N]. One below 2**-64 counts as that.
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor
        dtype of `hidden`, under autocast autocast's, shape [N, e]. Differentiable in `hidden`, `weight`,
        `embedding` and `bias`, once.
        NaN for a row of logits with a NaN or nothing but -inf.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or range, or a temperature that requires a gradient.

    Notes
    -----
    Products are the library's, on tiles of the vocabulary whose softmax is summed as it comes (Milakov and
    Gimelshein, arXiv 1805.02867), in float32. The backward makes each tile of logits once more. Time is that
    of the products: two forward, and at most five backward. Sums have one order on any number of threads.
    """
    is_tied = embedding is weight
    hidden, weight, bias = checks.autocast(hidden), checks.autocast(weight), checks.autocast(bias)
    embedding = weight if is_tied else checks.autocast(embedding)
    hidden = checks.factors(hidden, weight, bias, dtypes=_FLOATS, dim=2)
    checks.tensor("embedding", embedding, dtypes=(hidden.dtype,), dims=(2,))
    if embedding.shape[0] != weight.shape[0]:
        raise ValueError(
            f"embedding: got shape {tuple(embedding.shape)}; allowed: ({weight.shape[0]}, e), as weight"
        )
    checks.same_device("embedding", embedding, "hidden", hidden)
    if weight.shape[0] < 1:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: one token at least")
    if softcap is not None:
        softcap = checks.softcap(softcap)
    scale = _inverse(temperature, hidden)
    backend = requested_for(hidden, backend)
    mean, _ = _op(hidden, weight, embedding, bias, softcap, scale, backend)
    return mean


def _inverse(temperature: float | torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """1 / temperature, [N] or []."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    smallest = 2.0**-64  # times its inverse, no logit that a network gives leaves float32
    if not isinstance(temperature, torch.Tensor):
        number = checks.number("temperature", temperature, low=0.0, high=math.inf, open_low=True)
        return torch.full((), 1 / max(number, smallest), dtype=dtype, device=hidden.device)
    checks.tensor("temperature", temperature, dtypes=_FLOATS, shapes=[hidden.shape[:1]])
    checks.same_device("temperature", temperature, "hidden", hidden)
    if temperature.requires_grad:
        raise ValueError(
            "temperature: got a tensor that requires a gradient; allowed: a constant (detach it)"
        )
    temperature = temperature.to(torch.promote_types(temperature.dtype, torch.float32))
    small = (temperature > 0) & (temperature < smallest)
    return 1 / torch.where(small, smallest, temperature).to(dtype)


def _check_values(scale: torch.Tensor) -> None:
    if scale.dim() == 1 and checks_values(scale.device):
        inside = (scale > 0) & scale.isfinite()
        if not bool(inside.all()):
            row = int((~inside).to(torch.uint8).argmax())
            raise ValueError(f"temperature[{row}]: got {1 / float(scale[row])}; allowed: finite and above 0")


def _run(hidden, weight, embedding, bias, softcap, scale, backend):
    _check_values(scale)
    _, run = kernel("linear_expected_embedding", backend, hidden.device)
    return run(hidden, weight, embedding, bias, softcap, scale)


def _fake(hidden, weight, embedding, bias, softcap, scale, backend):
    mean = hidden.new_empty(hidden.shape[0], embedding.shape[1])
    return mean, hidden.new_empty(hidden.shape[0], dtype=scale.dtype)


def _run_backward(grad, mean, log_sum_exp, hidden, weight, embedding, bias, softcap, scale, needs, backend):
    _, run = kernel("linear_expected_embedding_backward", backend, hidden.device)
    gradients = run(grad, mean, log_sum_exp, hidden, weight, embedding, bias, softcap, scale, tuple(needs))
    # A schema has no optional outputs: what is not needed is an empty tensor.
    return tuple(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _fake_backward(grad, mean, log_sum_exp, hidden, weight, embedding, bias, softcap, scale, needs, backend):
    shapes = (hidden.shape, weight.shape, embedding.shape, weight.shape[:1])
    return tuple(
        hidden.new_empty(shape if needed else 0) for shape, needed in zip(shapes, needs, strict=True)
    )


def _setup(ctx, inputs, output):
    hidden, weight, embedding, bias, ctx.softcap, scale, ctx.backend = inputs
    ctx.save_for_backward(*output, hidden, weight, embedding, bias, scale)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    mean, log_sum_exp, hidden, weight, embedding, bias, scale = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    gradients = _backward_op(
        grad, mean, log_sum_exp, hidden, weight, embedding, bias, ctx.softcap, scale, needs, ctx.backend
    )
    needed = (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
    return *needed, None, None, None


register(
    "linear_expected_embedding(Tensor hidden, Tensor weight, Tensor embedding, Tensor? bias, float? softcap, "
    "Tensor scale, str backend) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward_op = register(
    "linear_expected_embedding_backward(Tensor grad, Tensor mean, Tensor log_sum_exp, Tensor hidden, "
    "Tensor weight, Tensor embedding, Tensor? bias, float? softcap, Tensor scale, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_op = differentiate("linear_expected_embedding", _backward, _setup)
