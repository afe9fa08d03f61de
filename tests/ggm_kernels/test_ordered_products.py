"""Products in pieces: right for every shape, and the same bits whatever the threads are."""

from dataclasses import replace

import pytest
import torch

from ggm_kernels.native import CPU, ordered_products
from ggm_kernels.native.ordered_products import add_product, run_apart

# Shapes that libraries cut up by threads: thin, long sums, more than one piece either way.
SHAPES = [(1, 1, 5000), (7, 300, 4096), (300, 5, 2000), (600, 1030, 129), (513, 2100, 64), (40, 16384, 16)]
EMPTY = [(0, 5, 3), (5, 0, 3), (5, 3, 0)]


def product_of(shape: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """Total, both factors (one of them transposed), and their product in float64."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, terms = shape
    total = torch.randn(rows, columns, generator=generator)
    a, b = torch.randn(rows, terms, generator=generator), torch.randn(columns, terms, generator=generator).T
    return total, a, b, total.double() + a.double() @ b.double()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(CPU.core is None, reason="no compiled core")
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_they_are_products_with_the_same_bits_on_any_number_of_threads(shape, threads):
    found = []
    for number in (1, 2, 3, 8):
        threads(number)
        total, a, b, expected = product_of(shape)
        add_product(total, a, b)
        found.append(total)
        assert torch.get_num_threads() == number
    assert all(torch.equal(other, found[0]) for other in found)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)


def test_without_the_core_pieces_come_one_after_another(monkeypatch, threads):
    monkeypatch.setattr(ordered_products, "CPU", replace(CPU, core=None))
    threads(2)
    total, a, b, expected = product_of((600, 1030, 129))
    add_product(total, a, b)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(CPU.core is None, reason="no compiled core")
def test_an_error_of_a_piece_is_the_callers(threads):
    threads(2)

    def task(index: int) -> None:
        if index == 3:
            raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        run_apart(task, 6)
    assert torch.get_num_threads() == 2
