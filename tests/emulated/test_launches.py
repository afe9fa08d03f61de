"""Results do not depend on the order of threads and blocks, on the grid, or on the number of processors."""

import pytest
from small_cases import ALL

from ggm_kernels.native.compiled import emulated as module


@pytest.fixture
def settings():
    before = module.settings.order, module.settings.largest_grid, module.settings.processors
    yield module.settings
    module.settings.order, module.settings.largest_grid, module.settings.processors = before


@pytest.mark.parametrize("order", [0, 1, 12345])
@pytest.mark.parametrize("largest_grid", [0, 1, 2, 3])
def test_results_in_any_order_on_any_grid(settings, order, largest_grid):
    settings.order, settings.largest_grid = order, largest_grid
    for check in ALL:
        check()


@pytest.mark.parametrize("processors", [1, 132])
def test_results_on_any_device(settings, processors):
    settings.order, settings.processors = 99, processors
    for check in ALL:
        check()


def test_launches_are_counted():
    module.take_counts()
    ALL[0]()
    counts = module.take_counts()
    kernels = {name.split("<")[0] for name in counts}
    assert kernels == {"corrupt_kernel"}
    assert sum(of["launches"] for of in counts.values()) == 16
    assert not module.take_counts()
