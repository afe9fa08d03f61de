"""Signals that ask a run to end, and the step at which all its processes do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


@contextmanager
def signals() -> Iterator[list[int]]:
    """Numbers of the signals that ask for an end; the second one has its usual effect."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Agreement on when to stop: what one process was asked, all of them do after the same step.

    Parameters
    ----------
    received : list of int
        Of `signals`.
    processes : int
        How many there are; all make one `Stop`, and ask it after every step.

    Notes
    -----
    Several processes tell each other one number per step, over gloo whatever the gradients take: to ask a
    GPU would make the CPU wait for it. The answer is read a step later, when it has come anyhow.
    """

    def __init__(self, received: list[int], processes: int) -> None:
        self._received = received
        self._group = dist.new_group(backend="gloo") if processes > 1 else None
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def agreed(self) -> str | None:
        """Name of the signal after which to stop now, on all processes alike; None to go on."""
        number = self._received[0] if self._received else 0
        if self._group is not None:
            number, own = self._answer(), number
            self._under_way = self._ask(own)
        return signal.Signals(number).name if number else None

    def close(self) -> None:
        """Wait for what is still under way, once all have made their last step."""
        self._answer()
        self._under_way = None

    def _ask(self, number: int) -> tuple[torch.Tensor, Any]:
        highest = torch.tensor([number], dtype=torch.int32)
        return highest, dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _answer(self) -> int:
        """Highest number that any process was asked with a step ago."""
        if self._under_way is None:
            return 0
        highest, work = self._under_way
        work.wait()
        return int(highest)
