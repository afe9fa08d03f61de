"""Backends of device code: those that need a GPU, and csrc/cuda emulated on the CPU, which needs none. Plans."""

import sys

import pytest
import torch

from ggm_kernels import backends
from ggm_kernels.native import plans
from ggm_kernels.ops.plans import Plans

ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton", "reference")]
EMULATED = ["emulated"] if backends()["emulated"] else []


@pytest.fixture(params=ON_GPU)
def gpu_backend(request) -> str:
    """A backend on a GPU, for what cannot be emulated: captures, streams, sizes beyond a CPU's patience."""
    return _present(request.param)


@pytest.fixture(params=[*ON_GPU, *EMULATED])
def device_backend(request, monkeypatch) -> str:
    """A backend of device code, whose values are checked only where GGM_KERNELS_CHECK asks for it."""
    if request.param == "emulated":
        treat_as_device(monkeypatch)
    return _present(request.param)


@pytest.fixture(params=[*ON_GPU[:2], *EMULATED])
def device_kernels(request, monkeypatch) -> str:
    """`device_backend` but for the reference, whose operations assert where they are given illegal ids."""
    if request.param == "emulated":
        treat_as_device(monkeypatch)
    return _present(request.param)


@pytest.fixture
def device(request) -> str:
    """Type of the device on which the backend of the test works."""
    names = {"device_backend", "device_kernels"} & set(request.fixturenames)
    return "cpu" if request.getfixturevalue(names.pop()) == "emulated" else "cuda"


def treat_as_device(monkeypatch) -> None:
    """Check values on the CPU no more than on a GPU: what kernels do with illegal ones is to be seen."""
    from ggm_kernels.backends import checks_rows

    for name, module in list(sys.modules.items()):
        if name.startswith("ggm_kernels.ops.") and hasattr(module, "checks_values"):
            monkeypatch.setattr(module, "checks_values", lambda device: checks_rows())


def _present(name: str) -> str:
    state = backends()[name]
    assert state, state.reason
    if name != "emulated":
        assert torch.cuda.is_available()
    return name


@pytest.fixture
def planned(monkeypatch):
    """Counts the calls that a plan has served; no plan of an earlier test is left."""
    served = []
    run = plans.Plan.run

    def counted(self, *arguments):
        served.append(run(self, *arguments))
        return served[-1]

    monkeypatch.setattr(plans.Plan, "run", counted)
    for op in ("glauber_step", "commit", "corrupt"):
        monkeypatch.setattr(f"ggm_kernels.ops.{op}._PLANS", Plans(op))
    return served
