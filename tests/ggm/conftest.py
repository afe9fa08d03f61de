"""Pictures and a network of their tokens, made once."""

import pytest
from pictures import COUNT, draw_pictures, small_vq


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of COUNT small pictures, which no test may write to."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture(scope="session")
def vq(tmp_path_factory):
    """Folder of a VQModel with 16 tokens, for pictures of SIZE; no test may write to it."""
    return small_vq(tmp_path_factory.mktemp("vq"))


@pytest.fixture
def fresh_accelerate():
    """Forget the settings of an earlier run in this process, which accelerate keeps for its life."""
    from accelerate.state import AcceleratorState, GradientState

    for wait in (True, False):  # an earlier test may have left them, and this one must not
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if wait:
            yield
