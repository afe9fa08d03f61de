"""The `torch.library` namespace `ggm_kernels` and how an op enters it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch.autograd import forward_ad

from ggm_kernels import checks
from ggm_kernels.ops.plans import is_eager, needs_no_dispatcher

_LIBRARY = torch.library.Library("ggm_kernels", "DEF")


def register(schema: str, run: Callable, fake: Callable) -> Callable:
    """Define an op by schema, its implementation for all devices and its fake; return what calls it.

    A call in which the dispatcher has nothing to do goes straight to the implementation, which saves a
    quarter of a small call: it is for ops without a formula of gradients, see `differentiate`.
    `Library.define` and `impl` rather than `torch.library.custom_op`: a quarter of the cost per call.
    """
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ggm_kernels::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"ggm_kernels::{name}", _refuse_vmap(name), lib=_LIBRARY)
    op = getattr(torch.ops.ggm_kernels, name).default

    def call(*arguments):
        return run(*arguments) if needs_no_dispatcher(arguments) else op(*arguments)

    return call


def _refuse_vmap(name: str) -> Callable:
    def refuse(info, in_dims, *arguments):
        raise NotImplementedError(
            f"ggm_kernels.{name} does not support vmap; fold the mapped dimension into the rows instead"
        )

    return refuse


@contextmanager
def writing(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor | None]) -> Iterator[None]:
    """Around a kernel that writes some of its arguments, by name, and reads others.

    Raises ValueError where they share memory. Lets all backends write to tensors made under inference_mode:
    PyTorch does that under it alone, compiled kernels do not ask. Then tells autograd, which may have saved
    the tensors for a backward, that they were written.
    """
    checks.apart(written, read)
    with torch.inference_mode() if any(map(torch.is_inference, written.values())) else nullcontext():
        yield
    counted = [value for value in written.values() if not value.is_inference()]
    torch.autograd.graph.increment_version(counted)


def refuse_shared_copies(
    written: dict[str, torch.Tensor | None], read: Iterable[tuple[str, object, object]]
) -> None:
    """Raise ValueError where something that is read as a copy shares memory with what is written.

    Parameters
    ----------
    written : dict of str to torch.Tensor or None
        Arguments that the op writes.
    read : iterable of tuple
        Name of an argument, what was given, and what the op gets: what is no copy is seen by `writing`.
    """
    copied = {
        name: given for name, given, used in read if isinstance(given, torch.Tensor) and given is not used
    }
    if copied and is_eager() and all(map(_has_address, copied.values())):
        checks.apart({name: value for name, value in written.items() if value is not None}, {**copied})


def _has_address(value: torch.Tensor) -> bool:
    return (
        value.device.type != "meta"
        and type(value).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
    )


def differentiate(name: str, backward: Callable, setup_context: Callable) -> Callable:
    """Register the backward formula of the op `name`, whose gradients refuse to be differentiated again.

    `setup_context` saves a result of the op that depends on all that can have a gradient. Returns the op as
    it is to be called: forward-mode differentiation is refused, `torch.func.grad` and `torch.func.vjp` work.
    """
    op = getattr(torch.ops.ggm_kernels, name).default

    def once(ctx, *grads):
        gradients = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # it is only where a graph of the gradient is asked for
            return gradients
        kept = (value for value in (*grads, *ctx.saved_tensors) if value is not None)
        depends_on = [value for value in kept if value.requires_grad]
        if not depends_on:  # torch.func.grad enables it always
            return gradients
        return tuple(
            None if gradient is None else _Final.apply(name, gradient, *depends_on) for gradient in gradients
        )

    torch.library.register_autograd(f"ggm_kernels::{name}", once, setup_context=setup_context, lib=_LIBRARY)
    in_transforms = _function(name, op, once, setup_context)

    def call(*arguments):
        _refuse_tangents(name, arguments)
        # What register_autograd makes does not take part in the transforms of torch.func.
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return in_transforms(*arguments)
        return op(*arguments)

    return call


def _function(name: str, op: Callable, backward: Callable, setup_context: Callable) -> Callable:
    """The op as a `torch.autograd.Function` that the transforms of `torch.func` know how to call."""

    class Function(torch.autograd.Function):
        pass

    methods = {"forward": op, "setup_context": setup_context, "backward": backward}
    refusals = {"jvp": _refuse_tangent(name), "vmap": _refuse_vmap(name)}
    for method, function in (methods | refusals).items():
        setattr(Function, method, staticmethod(function))
    return Function.apply


def _refuse_tangents(name: str, arguments: Sequence) -> None:
    if forward_ad._current_level < 0:  # nobody differentiates forward
        return
    for value in arguments:
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            _refuse_tangent(name)()


def _refuse_tangent(name: str) -> Callable:
    def refuse(*_):
        raise NotImplementedError(
            f"ggm_kernels.{name} does not support forward-mode differentiation; "
            "use reverse mode (backward, torch.func.vjp)"
        )

    return refuse


class _Final(torch.autograd.Function):
    """A gradient as it is, tied to what it depends on, so that autograd comes here to differentiate it."""

    @staticmethod
    def forward(name: str, gradient: torch.Tensor, *depends_on: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError(f"ggm_kernels.{ctx.name} is differentiable once; its gradient is not")

    @staticmethod
    def jvp(ctx, *_):
        raise NotImplementedError(f"ggm_kernels.{ctx.name} is differentiable once; its gradient is not")
