"""Which backends are here, why the others are not, and which of them serves a call."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

AUTO = "auto"
_MODULES = {
    "reference": "ggm_kernels.reference",
    "cpu": "ggm_kernels.native",
    "cuda": "ggm_kernels.native",
    "triton": "ggm_kernels.triton",
    "emulated": "ggm_kernels.native",
}
# Of the compiled backends the device type of their tensors; "emulated" is csrc/cuda on the CPU, for tests.
_DEVICE_TYPES = {"cpu": "cpu", "cuda": "cuda", "emulated": "cpu"}
# Order of preference on each device type; any other device is served by the reference.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


class BackendError(RuntimeError):
    """A backend was asked for by name that is not there; the message says how to get it."""


@dataclass(frozen=True)
class Backend:
    """State of one backend; truthy where it can serve calls.

    Attributes
    ----------
    available : bool
        Whether calls can be served here and now.
    reason : str
        What makes it available, or why it is not and how to get it.
    ops : frozenset of str
        The ops that it implements.
    """

    available: bool
    reason: str
    ops: frozenset[str]

    def __bool__(self) -> bool:
        return self.available


def backends() -> dict[str, Backend]:
    """State of every backend: ``reference``, ``cpu``, ``cuda``, ``triton``, and for tests ``emulated``.

    Returns
    -------
    dict of str to Backend
        ``.available``, ``.reason`` (why not, and how to get it) and ``.ops`` of each.
    """
    return {name: _state(name) for name in _MODULES}


def _variable(name: str) -> Callable[[], str | None]:
    """What reads an environment variable as it is now.

    `os.environ.get` learns by an exception that a variable is not set: of a small call a tenth. Where
    os.environ has the dictionary that CPython keeps in it, we look there.
    """
    kept = getattr(os.environ, "_data", None)
    if not isinstance(kept, dict):
        return lambda: os.environ.get(name)
    key = os.environ.encodekey(name)

    def read() -> str | None:
        value = kept.get(key)
        return None if value is None else os.environ.decodevalue(value)

    return read


backend_of_environment = _variable("GGM_KERNELS_BACKEND")
_check = _variable("GGM_KERNELS_CHECK")


def requested(backend: str | None) -> str:
    """The argument `backend` of a call as ops hold it: a name, or "auto" for None."""
    if backend is None:
        return AUTO
    if not isinstance(backend, str):
        raise TypeError(f"backend: got {type(backend).__name__}; allowed: a str or None (the best)")
    return backend


def requested_for(values: torch.Tensor, backend: str | None) -> str:
    """`requested`, of an op that the reference alone does in float64."""
    if values.dtype != torch.float64:
        return requested(backend)
    if backend not in (None, "reference"):
        raise TypeError(f"backend: got {backend!r} for float64; allowed: 'reference'")
    return "reference"


def check_name(backend: str, hint: str = "") -> None:
    """Raise ValueError where no backend has that name."""
    if backend not in _MODULES:
        allowed = ", ".join(map(repr, _MODULES))
        raise ValueError(f"backend: got {backend!r}; allowed: {allowed} or None (the best){hint}")


def checks_values(device: torch.device) -> bool:
    """Whether ids and ranges held in tensors are checked: always on CPU, on GPU if GGM_KERNELS_CHECK=1."""
    return device.type == "cpu" or checks_rows()


def checks_rows() -> bool:
    """Whether rows of logits without a law (NaN, all -inf) raise: if GGM_KERNELS_CHECK=1, on any device."""
    return _check() == "1"


def kernel(op: str, backend: str, device: torch.device) -> tuple[str, Callable]:
    """Name and function of the backend that serves `op` on `device`.

    Parameters
    ----------
    op : str
        Name of the op.
    backend : str
        A backend, or "auto": the environment variable GGM_KERNELS_BACKEND if set, else the best there is.
    device : torch.device
        Device of the tensors.

    Raises
    ------
    ValueError
        If no backend has that name, or the one named cannot work on that device.
    BackendError
        If the backend named is not available, or does not implement `op`.
    """
    hint = ""
    if backend == AUTO:
        backend = backend_of_environment() or AUTO
        hint = "; it is what GGM_KERNELS_BACKEND says"
    if backend == AUTO:
        return _best(op, device)
    return _named(op, backend, device, hint)


@cache
def _best(op: str, device: torch.device) -> tuple[str, Callable]:
    for name in _PREFERENCE.get(device.type, ("reference",)):
        state = _state(name)
        if state and op in state.ops:
            return name, _function(name, op)
    raise AssertionError("the reference implements every op")


@cache
def _named(op: str, name: str, device: torch.device, hint: str) -> tuple[str, Callable]:
    check_name(name, hint)
    state = _state(name)
    if not state:
        raise BackendError(f"backend {name!r} is not available: {state.reason}{hint}")
    if op not in state.ops:
        raise BackendError(f"backend {name!r} does not implement {op} in this version{hint}")
    expected = _DEVICE_TYPES.get(name, device.type)
    if device.type != expected:
        raise ValueError(
            f"backend: got {name!r} for {device.type} tensors; allowed: tensors on {expected}{hint}"
        )
    if name == "triton" and device.type != "cuda" and not _triton_interprets():
        raise ValueError(
            f"backend: got 'triton' for {device.type} tensors; allowed: cuda tensors, or any with "
            f"TRITON_INTERPRET=1 in the environment before Triton is imported{hint}"
        )
    return name, _function(name, op)


def _function(name: str, op: str) -> Callable:
    module = _module(name)
    return module.kernel(name, op) if name in _DEVICE_TYPES else getattr(module, op)


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])


@cache
def _state(name: str) -> Backend:
    if name == "reference":
        return Backend(True, "plain PyTorch, on every device", frozenset(_module(name).__all__))
    if name == "triton":
        reason = _why_no_triton()
        ops = frozenset(_module(name).__all__) if reason is None else frozenset()
        how = (
            "interpreted on the CPU (TRITON_INTERPRET=1)" if _triton_interprets() else "compiled for the GPU"
        )
        return Backend(reason is None, reason or how, ops)
    native = _module(name)
    reason = native.why_not(name)
    return Backend(reason is None, reason or native.describe(name), native.ops(name))


def _triton_interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_no_triton() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError:
        return "Triton is not installed: pip install triton"
    if not torch.cuda.is_available() and not _triton_interprets():
        return (
            "no CUDA device; to run it interpreted on the CPU set TRITON_INTERPRET=1 before the first import"
        )
    return None
