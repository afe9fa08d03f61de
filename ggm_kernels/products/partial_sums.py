"""Products added up in a fixed order by many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch


def add_product(sums: torch.Tensor, a: torch.Tensor, b: torch.Tensor, begun: bool) -> None:
    """``sums += a @ b``, or ``sums = a @ b`` where nothing is there to be added to; sums are float32."""
    if a.dtype != torch.float32:
        product = torch.mm(a, b)
        sums.add_(product) if begun else sums.copy_(product)
    elif begun:
        torch.addmm(sums, a, b, out=sums)
    else:
        torch.mm(a, b, out=sums)


class PartialSums:
    """A sum of products of tiles in the order of the tiles, whichever is ready first. Nobody waits.

    Tile i belongs to the partial sum ``i % count``. Who makes it ready adds it if all before it in that sum
    have been added, and then those after it that are ready; else it is left to who adds the one before.

    Parameters
    ----------
    sums : torch.Tensor
        Room for the partial sums, float32 [count, rows, columns].
    factors : callable
        Factors of a tile's product, [rows, tokens] and [tokens, columns].
    """

    def __init__(
        self, sums: torch.Tensor, factors: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self._sums, self._factors = sums, factors
        self._lock = threading.Lock()
        self._is_added: dict[int, bool] = {}  # of tiles that are ready: whether there is something to add
        self._turn = list(range(len(sums)))
        self._busy, self._begun = [False] * len(sums), [False] * len(sums)

    def ready(self, index: int, is_added: bool) -> None:
        """Say that a tile is ready, with something to add or without."""
        number = index % len(self._sums)
        with self._lock:
            self._is_added[index] = is_added
            if self._busy[number]:
                return
            self._busy[number] = True
        while (turn := self._next(number)) is not None:
            if self._is_added[turn]:
                add_product(self._sums[number], *self._factors(turn), self._begun[number])
                self._begun[number] = True

    def _next(self, number: int) -> int | None:
        """The next tile of a partial sum if it is ready; else nobody is busy with that sum."""
        with self._lock:
            index = self._turn[number]
            if index in self._is_added:
                self._turn[number] += len(self._sums)
                return index
            self._busy[number] = False
            return None

    def total_to(self, out: torch.Tensor) -> None:
        """Put the sum into `out`, unless nothing has been added."""
        begun = [partial for partial, begun in zip(self._sums, self._begun, strict=True) if begun]
        for partial in begun[1:]:
            begun[0].add_(partial)
        if begun:
            out.copy_(begun[0])
