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


@pytest.mark.parametrize("vocab_size", [5000, 50257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exponential_a_token_and_logarithms_of_groups_and_one_group(vocab_size, dtype):
    rows, groups = 3, -(-vocab_size // 1024)
    logits, tokens = draw(1, rows, vocab_size).to(dtype), torch.zeros(1, rows, dtype=torch.int64)
    log_sum_exp = torch.zeros(1, rows)
    module.take_counts()
    glauber_step(
        tokens, logits, torch.arange(rows), seed=1, step=0, log_sum_exp=log_sum_exp, backend="emulated"
    )
    counts = {name.split("<")[0]: of for name, of in module.take_counts().items()}
    assert set(counts) == {"group_kernel", "draw_kernel"}
    assert counts["group_kernel"]["logarithms"] == 0
    assert counts["group_kernel"]["exponentials"] == rows * groups * 1024
    assert counts["draw_kernel"]["logarithms"] < rows * (3 * groups + 1500)  # of 2048, had all tokens theirs


def test_a_row_without_work_costs_none():
    tokens, log_sum_exp = torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8)
    module.take_counts()
    positions = torch.where(torch.arange(8) % 2 == 0, torch.arange(8), -1)[None]
    glauber_step(
        tokens, draw(1, 8, 3000), positions, seed=1, step=0, frozen=torch.ones(1, 8, dtype=torch.bool),
        log_sum_exp=log_sum_exp, backend="emulated",
    )  # fmt: skip
    assert not any(of["exponentials"] + of["logarithms"] for of in module.take_counts().values())
    assert log_sum_exp.isnan().all()


@pytest.mark.parametrize(("rows", "threads"), [(3, 1024), (4, 512)])
def test_a_row_has_a_processor_for_itself_where_there_are_enough(settings, rows, threads):
    settings.processors = 4
    logits, positions = draw(1, rows, 8192), torch.arange(rows)
    tokens = torch.zeros(1, rows, dtype=torch.int64)
    module.take_counts()
    glauber_step(tokens, logits, positions, seed=1, step=0, top_k=3, backend="emulated")
    (of_threshold,) = (of for name, of in module.take_counts().items() if "threshold" in name)
    assert of_threshold["threads"] == rows * threads
