"""Tests of device code that runs emulated: they need `make emulated`, which builds it."""

import pytest

from ggm_kernels import backends


@pytest.fixture(autouse=True)
def emulated() -> None:
    state = backends()["emulated"]
    if not state:
        pytest.skip(state.reason)
