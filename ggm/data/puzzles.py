"""Sudoku grids of 4 x 4 and 9 x 9 cells, and the check of a solution."""

from __future__ import annotations

import itertools
import random

import torch

_BASES = 16


def sudoku_grids(count: int, box: int = 3, *, seed: int = 0) -> torch.Tensor:
    """Solved grids.

    Parameters
    ----------
    count : int
        How many.
    box : int
        Side of a box: 2 for 4 x 4 cells, 3 for 9 x 9.
    seed : int
        Same seed, same grids.

    Returns
    -------
    torch.Tensor
        int64 [count, box**4], row by row: token d stands for the digit d + 1.

    Raises
    ------
    ValueError
        If `count` is below 0, or `box` is not 2 or 3.

    Notes
    -----
    A grid is one of 16 found by random search, with digits renamed, rows and columns exchanged within
    bands and bands among themselves, and transposed or not, all at random. For 4 x 4 every one of the
    288 grids may come; for 9 x 9 the 16 classes are a small part of all.
    """
    if count < 0 or box not in (2, 3):
        raise ValueError(f"count, box: got {count}, {box}; allowed: 0 and more, 2 or 3")
    side, draw = box * box, random.Random(seed)
    bases = torch.tensor([_search(box, draw) for _ in range(min(count, _BASES))]).view(-1, side, side)
    grids = []
    for number in range(count):
        grid = bases[number % _BASES]
        rows, columns = _exchanged(box, draw), _exchanged(box, draw)
        names = torch.tensor(draw.sample(range(side), side))
        grid = names[grid[rows][:, columns]]
        grids.append((grid.T if draw.random() < 0.5 else grid).flatten())
    return torch.stack(grids) if grids else torch.empty(0, side * side, dtype=torch.int64)


def all_small_grids() -> torch.Tensor:
    """The 288 grids of 4 x 4 cells, int64 [288, 16], in lexicographic order."""
    rows = list(itertools.permutations(range(4)))
    # Two rows with every digit in each of their boxes; a grid is two such bands.
    bands = torch.tensor([a + b for a in rows for b in rows if len({*a[:2], *b[:2]}) == 4])
    each = torch.arange(len(bands))
    grids = bands[torch.cartesian_prod(each, each)].flatten(1)
    return grids[is_solved(grids)]


def is_solved(grids: torch.Tensor) -> torch.Tensor:
    """Whether every row, column and box of a grid [N, box**4] has every digit once: bool [N].

    Raises
    ------
    ValueError
        If the grids have neither 16 nor 81 cells.
    """
    sides = {16: 2, 81: 3}
    if grids.dim() != 2 or grids.shape[1] not in sides:
        raise ValueError(f"grids: got shape {tuple(grids.shape)}; allowed: [N, 16] or [N, 81]")
    box = sides[grids.shape[1]]
    side = box * box
    rows = grids.view(-1, side, side)
    boxes = grids.view(-1, box, box, box, box).transpose(2, 3).reshape(-1, side, side)
    units = torch.cat([rows, rows.transpose(1, 2), boxes], dim=1)
    digits = torch.arange(side, device=grids.device)
    return (units.sort(dim=2).values == digits).flatten(1).all(dim=1)


def draw_givens(count: int, cells: int, least: int, most: int, *, seed: int = 0) -> torch.Tensor:
    """Cells that are shown, bool [count, cells]: in each row a random number of them, `least` to `most`."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randint(least, most + 1, (count, 1), generator=generator)
    ranks = torch.rand(count, cells, generator=generator).argsort(dim=1).argsort(dim=1)
    return ranks < shown


def _exchanged(box: int, draw: random.Random) -> torch.Tensor:
    """Random order of rows that keeps bands together."""
    bands = draw.sample(range(box), box)
    return torch.tensor([band * box + row for band in bands for row in draw.sample(range(box), box)])


class _Board:
    """Cells that are filled one by one, with the digits that each row, column and box has as bits."""

    def __init__(self, box: int) -> None:
        self.side = box * box
        self.cells = [-1] * self.side**2
        self._used = [[0] * self.side for _ in range(3)]
        self._units = [
            (row, column, row // box * box + column // box)
            for row in range(self.side)
            for column in range(self.side)
        ]

    def free(self, place: int) -> list[int]:
        """Digits that may stand at a place."""
        row, column, box = self._units[place]
        used = self._used[0][row] | self._used[1][column] | self._used[2][box]
        return [digit for digit in range(self.side) if not used >> digit & 1]

    def put(self, place: int, digit: int) -> None:
        """Fill a cell."""
        self.cells[place] = digit
        self._flip(place, digit)

    def take(self, place: int) -> None:
        """Empty a cell."""
        digit, self.cells[place] = self.cells[place], -1
        self._flip(place, digit)

    def _flip(self, place: int, digit: int) -> None:
        for used, unit in zip(self._used, self._units[place], strict=True):
            used[unit] ^= 1 << digit


def _search(box: int, draw: random.Random) -> list[int]:
    """A grid by depth-first search: the cell with the fewest choices first, digits in random order."""
    board = _Board(box)

    def fill(empty: list[int]) -> bool:
        if not empty:
            return True
        draw.shuffle(empty)
        place, digits = min(((place, board.free(place)) for place in empty), key=lambda pair: len(pair[1]))
        rest = [other for other in empty if other != place]
        for digit in draw.sample(digits, len(digits)):
            board.put(place, digit)
            if fill(rest):
                return True
            board.take(place)
        return False

    fill(list(range(len(board.cells))))
    return board.cells
