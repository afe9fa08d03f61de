"""Calls that look like an earlier one: no check twice, and no dispatcher where it would do nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ggm_kernels.backends import checks_rows
from ggm_kernels.noise import NoiseLaw

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_VALUES = (int, float, bool, str, NoiseLaw)
_MOST = 64  # plans of an op; then it starts anew, so that what they hold is let go of


def _dispatch_keys(value: torch.Tensor) -> int:
    return torch._C._dispatch_keys(value).raw_repr()


def _plain_dispatch_keys() -> frozenset[int]:
    with torch.inference_mode(False):
        usual = _dispatch_keys(torch.empty(0, device="cpu"))
    with torch.inference_mode():
        return frozenset((usual, _dispatch_keys(torch.empty(0, device="cpu"))))


# Of strided CPU tensors that nothing wraps, tracks by keys of its own or has yet to conjugate or negate.
_PLAIN_KEYS = _plain_dispatch_keys()


def is_plain(value: torch.Tensor) -> bool:
    """Whether a tensor is nothing but memory of the CPU: no subclass, no fake, no wrapper."""
    return type(value) in _TENSORS and _dispatch_keys(value) in _PLAIN_KEYS


def is_eager() -> bool:
    """Whether nobody looks on: no compiler, tracer, mode, transform of torch.func or profiler."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    )


def needs_no_dispatcher(arguments: Iterable[Any]) -> bool:
    """Whether the dispatcher would do nothing with a call of an op without gradients but pass it on."""
    return is_eager() and all(is_plain(value) for value in arguments if isinstance(value, torch.Tensor))


def look(arguments: Iterable[Any]) -> tuple | None:
    """What arguments look like: all that checks depend on but addresses and values inside tensors.

    None for a call that has to go the long way: one that is watched, asks for checks of rows, or is given
    something else than plain CPU tensors, numbers, strings and laws.
    """
    if not is_eager() or checks_rows():
        return None
    seen: list[Any] = [os.environ.get("GGM_KERNELS_BACKEND")]
    for value in arguments:
        kind = type(value)
        if value is None:
            seen.append(None)
        elif kind in _TENSORS:
            keys = _dispatch_keys(value)
            if keys not in _PLAIN_KEYS:
                return None
            seen.append((value.shape, value.stride(), value.dtype, value.requires_grad, keys))
        elif kind in _VALUES:
            seen.append((kind, value))
        else:
            return None
    return tuple(seen)


class Plans:
    """What is remembered of the calls of one op: a plan each, or that there is none, by how they look."""

    def __init__(self) -> None:
        self._made: dict[tuple, Any] = {}

    def find(self, looks: tuple | None) -> Any:
        """The plan of calls that look so, or None."""
        return None if looks is None else self._made.get(looks)

    def remember(self, looks: tuple | None, make: Callable[[], Any]) -> None:
        """Note a call that passed its checks; the second one that looks so has a plan made."""
        if looks is None:
            return
        if len(self._made) >= _MOST:
            self._made.clear()
        self._made[looks] = make() if looks in self._made else None
