"""The public `linear_cross_entropy`: schema, checks, fake, autograd, backends."""

from __future__ import annotations

import math

import torch

from ggm_kernels import checks
from ggm_kernels.backends import kernel, requested_for
from ggm_kernels.ops.cross_entropy_rows import (
    check_row_tensor,
    check_values,
    checked_shift,
    mean_scale,
    row_scale,
)
from ggm_kernels.ops.library import differentiate, register
from ggm_kernels.products.logit_blocks import held_dtype

_FLOATS = (*checks.FLOATS, torch.float64)
_REDUCTIONS = ("none", "sum", "mean")


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    row_weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    logit_shift: torch.Tensor | None = None,
    shifted_token: torch.Tensor | None = None,
    reduction: str = "none",
    return_log_sum_exp: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax cross-entropy on the logits ``hidden @ weight.T + bias``, which are never held all at once.

    ``cross_entropy(linear(hidden, weight, bias).float(), targets, reduction="none") * row_weight``, and its
    sum or weighted mean. No [N, V] tensor exists, forward or backward.

    Parameters
    ----------
    hidden : torch.Tensor
        float32, bfloat16 or float16 (float64 with ``backend="reference"``), shape [N, d].
    weight : torch.Tensor
        Output embedding, dtype of `hidden`, shape [V, d]. Under autocast `hidden`, `weight` and `bias` are
        cast as those of ``linear`` are.
    targets : torch.Tensor
        Token ids in [0, V) or `ignore_index`, int32 or int64, shape [N].
    row_weight : torch.Tensor, optional
        Factor of each row's loss, float or bool [N], a constant. A weight of 0 switches the row off, also
        where its loss is infinite or NaN, and costs no work on a CPU.
    bias : torch.Tensor, optional
        dtype of `weight`, shape [V].
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)``; above 0.
    ignore_index : int
        Rows with this target have loss 0 and give no gradient.
    z_loss : float
        Adds ``z_loss * log_sum_exp**2`` to the loss of a row, before its weight; at least 0.
    logit_shift, shifted_token : torch.Tensor, optional
        ``logit_shift[n]`` is added to the logit of ``shifted_token[n]``, after the softcap: what makes
        leave-one-out logits of a denoiser's (docs/mathematics.md). float [N], a constant, and int32 or int64
        [N], in [0, V) where the row is not ignored. Both or neither.
    reduction : {"none", "sum", "mean"}
        "none": losses [N]. "mean": their sum over that of the weights of rows that are not ignored, as
        `torch.nn.functional.cross_entropy` divides by class weights; NaN, with gradients of 0, where that
        sum is 0.
    return_log_sum_exp : bool
        Whether to return the log-sum-exp of each row's logits, too, ignored rows included.
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor or tuple of torch.Tensor
        Loss, float32 [N] or [] (float64 for float64 inputs), or the loss and log-sum-exp float32 [N].
        Both are differentiable in `hidden`, `weight` and `bias`, once: the gradient of the gradient is a
        NotImplementedError.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or value, or a constant that requires a gradient.
        TypeError, too, for a DTensor: under FSDP call this inside the forward of the module that is
        sharded, where its parameters are plain tensors.
    IndexError
        For a target or shifted token outside [0, V), on CPU, and on GPU if GGM_KERNELS_CHECK=1.

    Notes
    -----
    "sum" and "mean" make the gradients in the forward pass, each product of the backward one block of rows
    at a time, and hold them until the backward scales them: no logit is computed twice. "none" takes any
    gradient of the losses and computes the logits again, as the gradient of log-sum-exp does. Gradients of
    `weight` are added up in float32, in one order for any number of threads; on a CPU a tile of logits is
    left out of it where all their gradients are at most 2**-40 of the largest row's weight.

    Source: the loss of cut cross-entropy (arXiv 2411.09009) and of Liger-Kernel (arXiv 2410.10989), the
    latter's gradients in the forward pass.
    """
    if reduction not in _REDUCTIONS:
        allowed = ", ".join(map(repr, _REDUCTIONS))
        raise ValueError(f"reduction: got {reduction!r}; allowed: {allowed}")
    if not isinstance(return_log_sum_exp, bool):
        raise TypeError(f"return_log_sum_exp: got {type(return_log_sum_exp).__name__}; allowed: a bool")
    hidden, weight, bias = _check_factors(hidden, weight, bias)
    check_row_tensor("targets", targets, hidden, checks.INTEGERS)
    ignore_index = checks.integer("ignore_index", ignore_index, low=-(2**63), high=2**63)
    scale = row_scale(row_weight, targets, ignore_index, hidden)
    scale, nothing = mean_scale(scale) if reduction == "mean" else (scale, None)
    shift, shifted = checked_shift(logit_shift, shifted_token, hidden)
    cap = 0.0 if softcap is None else checks.softcap(softcap)
    z_loss = checks.number("z_loss", z_loss, low=0.0, high=math.inf)
    rows = (hidden, weight, bias, targets, scale, shift, shifted)
    numbers = (cap, z_loss, ignore_index, return_log_sum_exp, requested_for(hidden, backend))
    if reduction == "none":
        loss, log_sum_exp, _ = _op(*rows, *numbers)
    else:
        needs = [value is not None and value.requires_grad for value in (hidden, weight, bias)]
        needs = [needed and torch.is_grad_enabled() for needed in needs]
        loss, log_sum_exp, *_ = _sum_op(*rows, *numbers, needs)
        if nothing is not None:
            loss = loss + torch.where(nothing, math.nan, 0.0).to(loss.dtype)
    return (loss, log_sum_exp) if return_log_sum_exp else loss


def _check_factors(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    hidden, weight, bias = checks.autocast(hidden), checks.autocast(weight), checks.autocast(bias)
    hidden = checks.factors(hidden, weight, bias, dtypes=_FLOATS, dim=2)
    if weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: (V, d) with V of at least 1")
    return hidden, weight, bias


# The rows' losses: any gradient of them, which the backward computes the logits for again


def _run(
    hidden, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss, ignore_index, all_rows,
    backend,
):  # fmt: skip
    check_values(targets, shifted_token, ignore_index, all_rows, weight.shape[0])
    _, run = kernel("linear_cross_entropy", backend, hidden.device)
    return run(
        hidden, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss, all_rows
    )  # fmt: skip


def _fake(hidden, weight, bias, targets, scale, *_):
    return scale.new_empty(scale.shape), scale.new_empty(scale.shape), scale.new_empty(2, scale.shape[0])


def _setup(ctx, inputs, output):
    _, log_sum_exp, normaliser = output
    _save(ctx, inputs, log_sum_exp, normaliser, ())


def _save(ctx, inputs, log_sum_exp, normaliser, gradients) -> None:
    hidden, weight, bias, targets, scale, shift, shifted, ctx.softcap, ctx.z_loss, *_, ctx.backend = inputs
    ctx.mark_non_differentiable(normaliser, *gradients)
    ctx.set_materialize_grads(False)
    rows = (hidden, weight, bias, targets, shift, shifted)
    ctx.save_for_backward(log_sum_exp, normaliser, scale, *rows, *gradients)


def _backward(ctx, grad, grad_log_sum_exp, *_):
    if _unused(grad, grad_log_sum_exp):
        return (None,) * 12
    needs = [ctx.needs_input_grad[index] for index in range(3)]
    return (*_recomputed(ctx, ctx.saved_tensors, grad, grad_log_sum_exp, needs), *[None] * 9)


def _unused(grad, grad_log_sum_exp) -> bool:
    return grad is None and grad_log_sum_exp is None


def _recomputed(ctx, saved, grad, grad_log_sum_exp, needs):
    """Gradients of hidden, weight and bias for those of the rows' losses and log-sum-exps, each or None."""
    log_sum_exp, normaliser, scale, hidden, weight, bias, targets, shift, shifted = saved
    softmax_scale = target_scale = torch.zeros_like(scale)
    if grad is not None:
        target_scale = torch.where(scale == 0, 0.0, grad * scale)
        softmax_scale = target_scale
        if ctx.z_loss > 0:
            softmax_scale = torch.where(
                scale == 0, 0.0, target_scale * (1 + 2 * ctx.z_loss * log_sum_exp.detach())
            )
    if grad_log_sum_exp is not None:
        softmax_scale = softmax_scale + grad_log_sum_exp
    gradients = _backward_op(
        softmax_scale, target_scale, normaliser, hidden, weight, bias, targets, shift, shifted, ctx.softcap,
        needs, ctx.backend,
    )  # fmt: skip
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


def _run_backward(
    softmax_scale, target_scale, normaliser, hidden, weight, bias, targets, logit_shift, shifted_token,
    softcap, needs, backend,
):  # fmt: skip
    _, run = kernel("linear_cross_entropy_backward", backend, hidden.device)
    gradients = run(
        softmax_scale, target_scale, normaliser, hidden, weight, bias, targets, logit_shift, shifted_token,
        softcap, tuple(needs),
    )  # fmt: skip
    # A schema has no optional outputs: what is not needed is an empty tensor.
    return tuple(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _fake_backward(
    softmax_scale, target_scale, normaliser, hidden, weight, bias, targets, logit_shift, shifted_token,
    softcap, needs, backend,
):  # fmt: skip
    return _empty_gradients(hidden, weight, needs, hidden.dtype)


def _empty_gradients(hidden, weight, needs, dtype):
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return tuple(
        hidden.new_empty(shape, dtype=dtype) if needed else hidden.new_empty(0)
        for shape, needed in zip(shapes, needs, strict=True)
    )


_ROWS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor scale, Tensor? logit_shift, "
    "Tensor? shifted_token, float softcap, float z_loss, int ignore_index, bool all_rows, str backend"
)
register(f"linear_cross_entropy({_ROWS}) -> (Tensor, Tensor, Tensor)", _run, _fake)
_backward_op = register(
    "linear_cross_entropy_backward(Tensor softmax_scale, Tensor target_scale, Tensor normaliser, "
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? logit_shift, Tensor? shifted_token, "
    "float softcap, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_op = differentiate("linear_cross_entropy", _backward, _setup)


# Their sum, with its gradients made on the way


def _run_sum(
    hidden, weight, bias, targets, scale, logit_shift, shifted_token, softcap, z_loss, ignore_index, all_rows,
    backend, needs,
):  # fmt: skip
    check_values(targets, shifted_token, ignore_index, all_rows, weight.shape[0])
    _, run = kernel("linear_cross_entropy_sum", backend, hidden.device)
    loss, log_sum_exp, normaliser, *gradients = run(
        hidden,
        weight,
        bias,
        targets,
        scale,
        logit_shift,
        shifted_token,
        softcap,
        z_loss,
        all_rows,
        tuple(needs),
    )
    gradients = (hidden.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return loss.sum(), log_sum_exp, normaliser, *gradients


def _fake_sum(hidden, weight, bias, targets, scale, *rest):
    _, log_sum_exp, normaliser = _fake(hidden, weight, bias, targets, scale)
    gradients = _empty_gradients(hidden, weight, rest[-1], held_dtype(hidden.dtype))
    return scale.new_empty(()), log_sum_exp, normaliser, *gradients


def _setup_sum(ctx, inputs, output):
    _, log_sum_exp, normaliser, *gradients = output
    *inputs, ctx.made = inputs
    ctx.dtype = inputs[0].dtype
    _save(ctx, inputs, log_sum_exp, normaliser, gradients)


def _backward_sum(ctx, grad, grad_log_sum_exp, *_):
    if _unused(grad, grad_log_sum_exp):
        return (None,) * 13
    needs = [ctx.needs_input_grad[index] for index in range(3)]
    saved = ctx.saved_tensors
    saved, made = saved[:9], saved[9:]
    if grad_log_sum_exp is None and _are_made(ctx, needs):
        gradients = _scaled(made, grad, needs, ctx.dtype)
    else:
        gradients = _recomputed(ctx, saved, grad, grad_log_sum_exp, needs)
    return (*gradients, *[None] * 10)


def _are_made(ctx, needs) -> bool:
    """Not under torch.func, whose wrappers want what the call did not see wanted."""
    return all(made or not needed for needed, made in zip(needs, ctx.made, strict=True))


def _scaled(made, grad, needs, dtype):
    """Gradients of hidden, weight and bias by those that the forward made, which stay as they are."""
    if _is_last_use_by_one(grad):
        return [value.to(dtype) if needed else None for value, needed in zip(made, needs, strict=True)]
    return [(value * grad).to(dtype) if needed else None for value, needed in zip(made, needs, strict=True)]


def _is_last_use_by_one(grad: torch.Tensor) -> bool:
    """Whether the gradient is 1 and the graph goes after this: then nobody needs a copy of [V, d].

    Only on a CPU is the number at hand.
    """
    if type(grad) is not torch.Tensor or grad.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active() or torch.is_grad_enabled():
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph() and float(grad) == 1.0


register(
    f"linear_cross_entropy_sum({_ROWS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_sum,
    _fake_sum,
)
_sum_op = differentiate("linear_cross_entropy_sum", _backward_sum, _setup_sum)
