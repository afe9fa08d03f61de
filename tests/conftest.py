"""Triton kernels run in its interpreter where there is no GPU; tests may ask for a `backend` to run on."""

import importlib.util
import os
import tempfile

# No test asks the network for anything; read when the Hub's library is imported, whichever test does that first.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ggm-tests-")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

import pytest
from hypothesis import HealthCheck, settings

import ggm_kernels

if importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1":
    from triton_interpreter import look_once

    look_once()

# On a busy machine an example takes as long as it takes, to draw and to run.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


INTERPRETED = 3  # of so many cases one runs by default: interpreted, small ones take seconds


def served_on(op: str, device: str) -> list[str]:
    """Names of the available backends that implement `op` for tensors on `device`."""
    served = {
        "cpu": ("reference", "cpu", "triton", "emulated"),
        "cuda": ("reference", "cuda", "triton"),
    }[device]
    if torch.cuda.is_available() and device == "cpu":
        served = ("reference", "cpu", "emulated")  # Triton is compiled there, not interpreted
    states = ggm_kernels.backends()
    return [name for name in served if states[name] and op in states[name].ops]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `backend` over all that serve the op named by the module's OP, on CPU.

    A module that compares with the reference sets WITHOUT_REFERENCE.
    """
    if "backend" in metafunc.fixturenames:
        names = served_on(metafunc.module.OP, "cpu")
        if getattr(metafunc.module, "WITHOUT_REFERENCE", False):
            names.remove("reference")
        metafunc.parametrize("backend", names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases that a test has for interpreted Triton leave each third; the others are slow.

    All are where a module says so by TRITON_IS_SLOW.
    """
    if torch.cuda.is_available():
        return
    seen: dict[str, int] = {}
    for item in items:
        if getattr(item, "callspec", None) is None or item.callspec.params.get("backend") != "triton":
            continue
        test = item.nodeid.partition("[")[0]
        seen[test] = seen.get(test, 0) + 1
        if seen[test] % INTERPRETED != 1 or getattr(item.module, "TRITON_IS_SLOW", False):
            item.add_marker(pytest.mark.slow)
