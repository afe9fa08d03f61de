"""The `torch.library` namespace `ggm_kernels` and how an op enters it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("ggm_kernels", "DEF")


def register(schema: str, run: Callable, fake: Callable) -> Callable:
    """Define an op by schema, its implementation for all devices and its fake; return the callable op.

    `Library.define` and `impl` rather than `torch.library.custom_op`: a quarter of the cost per call.
    """
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ggm_kernels::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"ggm_kernels::{name}", _refuse_vmap(name), lib=_LIBRARY)
    return getattr(torch.ops.ggm_kernels, name).default


def _refuse_vmap(name: str) -> Callable:
    def refuse(info, in_dims, *arguments):
        raise NotImplementedError(
            f"ggm_kernels.{name} does not support vmap; fold the mapped dimension into the rows instead"
        )

    return refuse


def differentiate(name: str, backward: Callable, setup_context: Callable) -> None:
    """Register the backward formula of the op `name`, whose gradients refuse to be differentiated again."""

    def once(ctx, *grads):
        gradients = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # it is only where a graph of the gradient is asked for
            return gradients
        return tuple(
            None
            if gradient is None
            else _Final.apply(name, gradient.detach().requires_grad_(), *ctx.saved_tensors)
            for gradient in gradients
        )

    torch.library.register_autograd(f"ggm_kernels::{name}", once, setup_context=setup_context, lib=_LIBRARY)


class _Final(torch.autograd.Function):
    """A gradient as it is, tied to what it depends on, so that autograd comes here to differentiate it."""

    @staticmethod
    def forward(ctx, name: str, gradient: torch.Tensor, *depends_on: torch.Tensor) -> torch.Tensor:
        ctx.name = name
        return gradient.clone()

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError(f"ggm_kernels.{ctx.name} is differentiable once; its gradient is not")
