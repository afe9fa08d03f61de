"""Results do not depend on the order of threads and blocks, on the grid, or on the number of processors."""

import pytest
import torch
from small_cases import ALL, draw

from ggm_kernels import glauber_step
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


@pytest.mark.parametrize(("rows", "parts"), [(1, 12), (132, 4), (265, 2), (528, 1), (10**6, 1)])
def test_no_processor_has_a_block_more_than_it_must(settings, rows, parts):
    settings.processors = 132
    assert module.cuda_glauber_parts(rows, 50257, 0) == parts


@pytest.mark.parametrize(("rows", "threads"), [(3, 1024), (4, 512)])
def test_a_row_has_a_processor_for_itself_where_there_are_enough(settings, rows, threads):
    settings.processors = 4
    logits, positions = draw(1, rows, 8192), torch.arange(rows)
    tokens = torch.zeros(1, rows, dtype=torch.int64)
    module.take_counts()
    glauber_step(tokens, logits, positions, seed=1, step=0, top_k=3, backend="emulated")
    (of_threshold,) = (of for name, of in module.take_counts().items() if "threshold" in name)
    assert of_threshold["threads"] == rows * threads
