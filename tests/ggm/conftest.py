"""Tests of the model layer never ask the network for anything."""

import os
import tempfile

# Read when the libraries are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ggm-tests-")

import pytest


@pytest.fixture
def fresh_accelerate():
    """Forget the settings of an earlier run in this process, which accelerate keeps for its life."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
