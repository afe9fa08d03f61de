"""Processes that share out work, as torchrun starts them: each does some parts, all get all results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
# A process may have nothing to do for as long as another one scores.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """One process among several.

    Attributes
    ----------
    rank : int
        Which it is, from 0.
    count : int
        How many there are.
    local_rank : int
        Which it is on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that tells and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Device of this process: of several GPUs each takes its own."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name

    def share_out(self, parts: Sequence[Part], work: Callable[[Part], Result]) -> list[Result]:
        """Results of all parts, in their order, on all processes, which must all call this.

        Parameters
        ----------
        parts : sequence
            The same ones on all processes. Part i is done by process i modulo their number.
        work : callable
            What is done to a part. Its results are sent: tensors on the CPU, numbers, dataclasses of them.
        """
        own = [work(part) for part in parts[self.rank :: self.count]]
        if self.count == 1:
            return own
        import torch.distributed as dist

        every: list[list[Result]] = [[] for _ in range(self.count)]
        dist.all_gather_object(every, own)
        return [every[i % self.count][i // self.count] for i in range(len(parts))]


ALONE = Processes()


@contextmanager
def started() -> Iterator[Processes]:
    """The processes that torchrun started, joined over gloo; alone if it did not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, count, local_rank = (
        int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)
    )
    if count == 1:
        yield ALONE
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(rank, count, local_rank)
    finally:
        dist.destroy_process_group()
