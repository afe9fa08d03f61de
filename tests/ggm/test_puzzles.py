"""Grids are solved, differ, and the check of a solution knows rows, columns and boxes."""

import pytest
import torch

from ggm.data.puzzles import all_small_grids, draw_givens, is_solved, sudoku_grids


@pytest.mark.parametrize("box", [2, 3])
def test_grids_are_solved(box):
    grids = sudoku_grids(20, box, seed=1)
    assert grids.shape == (20, box**4)
    assert is_solved(grids).all()
    assert torch.equal(grids, sudoku_grids(20, box, seed=1))
    assert not torch.equal(grids, sudoku_grids(20, box, seed=2))


def test_there_are_288_small_ones_and_all_come():
    every = all_small_grids()
    assert every.shape == (288, 16) and is_solved(every).all()
    drawn = sudoku_grids(4000, 2, seed=0)
    assert len(torch.unique(torch.cat([every, drawn]), dim=0)) == 288
    assert len(torch.unique(drawn, dim=0)) == 288


def latin() -> torch.Tensor:
    """Right in rows and columns alone."""
    return (torch.arange(4)[:, None] + torch.arange(4)).remainder(4).view(1, 16)


def test_faults_are_found():
    assert not is_solved(latin()).any()
    right = sudoku_grids(1, 2)
    rows_alone = right.view(4, 4)[:1].expand(4, 4).reshape(1, 16)
    assert not is_solved(rows_alone).any()
    grid = right.clone()
    grid[0, :2] = right[0, :2].flip(0)  # rows and boxes stay right, columns do not
    assert not is_solved(grid).any()
    grid[0, 0] = 7
    assert not is_solved(grid).any()


def test_givens_are_as_many_as_asked_for():
    shown = draw_givens(500, 16, 4, 8, seed=0).sum(1)
    assert sorted(set(shown.tolist())) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("count", "box"), [(-1, 3), (1, 4)])
def test_other_grids_are_refused(count, box):
    with pytest.raises(ValueError, match="count, box: got"):
        sudoku_grids(count, box)


def test_grids_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="grids: got shape"):
        is_solved(torch.zeros(1, 15))
