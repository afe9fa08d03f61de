"""Calls that look like an earlier one: no check twice, and no dispatcher where it would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

import torch

from ggm_kernels.backends import backend_of_environment, checks_rows, kernel, requested
from ggm_kernels.noise import NoiseLaw
from ggm_kernels.randomness import MAX_SEED, MAX_STEP


class Plan(Protocol):
    """What ggm_kernels/native/plans.py makes."""

    def run(self, given: dict[str, Any], seed: int, step: int) -> int:
        """Less than 0, with nothing written, where a value or an address is amiss."""
        ...


NOT_RUN = -1  # and nothing written
_CPU = torch.device("cpu")

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
    seen: list[Any] = [backend_of_environment()]
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

    def __init__(self, op: str) -> None:
        self._op = op
        self._seen: set[tuple] = set()  # once
        self._made: dict[tuple, Plan | None] = {}

    def has(self, looks: tuple | None) -> bool:
        """Whether calls that look so have a plan."""
        return looks is not None and self._made.get(looks) is not None

    def run(self, looks: tuple | None, given: dict[str, Any], seed, step) -> int:
        """Run a call by the plan of those that look so; `NOT_RUN` goes the long way, which says why.

        Parameters
        ----------
        looks : tuple or None
            What `look` said of the call.
        given : dict of str to object
            Those of its arguments that may be tensors.
        seed, step : object
            As they were given.
        """
        plan = None if looks is None else self._made.get(looks)
        if plan is None or type(seed) is not int or type(step) is not int:
            return NOT_RUN
        if not (0 <= seed < MAX_SEED and 0 <= step < MAX_STEP):
            return NOT_RUN
        return plan.run(given, seed, step)

    def remember(
        self, looks: tuple | None, seed, step, backend: str | None, make: Callable[[ModuleType], Plan | None]
    ) -> None:
        """Note a call that passed its checks; for the second one that looks so a plan is made, if it can be.

        `make` is given the module that plans calls of the compiled core, if that is what serves them.
        """
        if looks is None or looks in self._made or type(seed) is not int or type(step) is not int:
            return
        if looks not in self._seen:
            if len(self._seen) + len(self._made) >= _MOST:
                self._seen.clear()
                self._made.clear()
            self._seen.add(looks)
            return
        self._seen.discard(looks)
        is_of_core = kernel(self._op, requested(backend), _CPU)[0] == "cpu"
        # Only now: where there is no core there is no such module, and it imports the ops.
        self._made[looks] = make(import_module("ggm_kernels.native.plans")) if is_of_core else None
