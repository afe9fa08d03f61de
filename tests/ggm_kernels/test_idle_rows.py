"""Rows that settle before their race, in any order among others, on one thread and on two."""

import pytest
import torch

from ggm_kernels import backends, glauber_step, linear_glauber_step

pytestmark = pytest.mark.skipif(not backends()["cpu"], reason="threads are those of the compiled core")

ROWS, HIDDEN = 640, 48
# Which rows are left to race; idle ones and kept ones are many enough to be worth a second thread by themselves.
LEFT = {
    "none": lambda row: row < 0,
    "the last": lambda row: row == ROWS - 1,
    "two": lambda row: (row == 5) | (row == ROWS - 2),
    "every third": lambda row: row % 3 == 0,
    "the first half": lambda row: row < ROWS // 2,
    "all": lambda row: row >= 0,
}


def frozen(left):
    return {"positions": None, "frozen": ~left[None]}


def absent(left):
    return {"positions": torch.where(left, torch.arange(ROWS), -1)[None]}


def kept(left):
    """A token without noise stays; where all is noise it goes."""
    return {"positions": None, "noise_rate": torch.where(left, 1.0, 0.0)[None]}


def some_of_each(left):
    row = torch.arange(ROWS)
    return {
        "positions": torch.where(left | (row % 2 == 0), row, -1)[None],
        "noise_rate": torch.where(left, 1.0, 0.0)[None],
        "frozen": (~left & (row % 4 == 0))[None],
    }


def calls(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    hidden, weight = (
        torch.randn(*shape, HIDDEN, generator=generator) for shape in ((1, ROWS), (vocab_size,))
    )
    logits = hidden @ weight.T
    yield lambda tokens, positions, **rest: glauber_step(tokens, logits, positions, **rest)
    yield lambda tokens, positions, **rest: linear_glauber_step(tokens, hidden, weight, positions, **rest)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("vocab_size", [3, 1500])
@pytest.mark.parametrize("way", [frozen, absent, kept, some_of_each])
@pytest.mark.parametrize("name", LEFT)
def test_settled_rows_change_no_other_row(name, way, vocab_size, threads):
    """Rows that are left draw what they draw where all are; the others keep their token."""
    left = LEFT[name](torch.arange(ROWS))
    for call in calls(vocab_size):
        threads(1)
        whole = call(torch.zeros(1, ROWS, dtype=torch.int64), None, seed=1, step=2, noise_rate=1.0)
        for count in (1, 2):
            threads(count)
            log_prob = torch.full((1, ROWS), 7.0)
            tokens = call(
                torch.zeros(1, ROWS, dtype=torch.int64), **way(left), seed=1, step=2, log_prob=log_prob
            )
            assert torch.equal(tokens, torch.where(left, whole, 0))
            assert torch.equal(log_prob.isnan(), ~left[None])
