"""Partial sums are those of one thread to the bit, whichever tile is ready first."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ggm_kernels.products.partial_sums import PartialSums

TILES, ROWS, TOKENS, COLUMNS = 9, 3, 40, 5
GRADIENTS = torch.randn(TILES, ROWS, TOKENS, generator=torch.Generator().manual_seed(0)) * torch.logspace(
    -3, 3, TILES
).view(-1, 1, 1)
WEIGHTS = torch.randn(TILES, TOKENS, COLUMNS, generator=torch.Generator().manual_seed(1))
LEFT_OUT = {0, 4, 7}


def sums_of(count: int) -> tuple[PartialSums, list[int]]:
    added: list[int] = []

    def factors(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        added.append(index)
        return GRADIENTS[index], WEIGHTS[index]

    return PartialSums(torch.full((count, ROWS, COLUMNS), torch.nan), factors), added


def total(sums: PartialSums) -> torch.Tensor:
    out = torch.full((ROWS, COLUMNS), -1.0)
    sums.total_to(out)
    return out


def in_order(count: int, left_out: set[int]) -> torch.Tensor:
    sums, _ = sums_of(count)
    for index in range(TILES):
        sums.ready(index, index not in left_out)
    return total(sums)


@pytest.mark.parametrize("left_out", [set(), LEFT_OUT])
@pytest.mark.parametrize("count", [1, 2, 4, TILES])
def test_any_order_gives_the_same_bits_and_leaves_nothing_out(count, left_out):
    wanted = in_order(count, left_out)
    exact = sum(
        (GRADIENTS[i].double() @ WEIGHTS[i].double() for i in range(TILES) if i not in left_out),
        torch.zeros(ROWS, COLUMNS, dtype=torch.float64),
    )
    torch.testing.assert_close(wanted.double(), exact, rtol=1e-5, atol=1e-3)
    for seed in range(20):
        order = random.Random(seed).sample(range(TILES), TILES)
        sums, added = sums_of(count)
        for index in order:
            sums.ready(index, index not in left_out)
        assert torch.equal(total(sums), wanted)
        assert sorted(added) == [index for index in range(TILES) if index not in left_out]


def test_threads_give_the_same_bits():
    wanted = in_order(2, LEFT_OUT)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            sums, _ = sums_of(2)
            list(pool.map(sums.ready, range(TILES), (index not in LEFT_OUT for index in range(TILES))))
            assert torch.equal(total(sums), wanted)


def test_the_order_of_additions_can_be_seen():
    """Else the tests above could not fail."""
    products = [GRADIENTS[i] @ WEIGHTS[i] for i in range(TILES)]
    orders = itertools.islice(itertools.permutations(range(TILES)), 0, 40_000, 997)
    sums = {sum(products[i] for i in order).numpy().tobytes() for order in orders}
    assert len(sums) > 1


def test_nothing_added_leaves_what_is_there():
    assert torch.equal(in_order(2, set(range(TILES))), torch.full((ROWS, COLUMNS), -1.0))
