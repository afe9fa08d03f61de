"""Sampling steps as CUDA graphs: recorded once per group size, then replayed without Python between kernels.

Not run on a GPU yet: what needs none is tested with a recorder in place of CUDA's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ggm.sampling.steps import Conditionals, Reversal
from ggm.sampling.visits import VisitGroup
from ggm_kernels.backends import checks_rows

# Before a recording all lazy preparations (tables on the device, libraries' workspaces) must be done.
_WARM_UPS = 3


class GraphedSteps:
    """The steps of one run on buffers that stay where they are, so that they can be replayed.

    Everything that differs from step to step is read from device memory: the tokens, the steps of the
    chain, [K] or [B, K], and the noise coordinate, a 0-d tensor. All else is recorded as it was at the
    first step.

    Parameters
    ----------
    conditionals : Conditionals
        Called with tensors for times, and only when a group size comes for the first time.
    run : Reversal
        What all steps share.
    tokens : torch.Tensor
        Tokens of the shape, dtype and device of all later ones.

    Raises
    ------
    ValueError
        If the tokens are not on a CUDA device, or GGM_KERNELS_CHECK=1, whose checks stop the device.
    """

    def __init__(self, conditionals: Conditionals, run: Reversal, tokens: torch.Tensor) -> None:
        check(tokens)
        self._conditionals, self._run = conditionals, run
        self._tokens = torch.empty_like(tokens)
        self._coordinate = torch.zeros((), dtype=torch.int64, device=tokens.device)
        self._recorded: dict[torch.Size, tuple[torch.Tensor, Callable[[], None]]] = {}

    def load(self, tokens: torch.Tensor) -> torch.Tensor:
        """Copy tokens [B, L] into the buffer that all steps work on; returns the buffer."""
        return self._tokens.copy_(tokens)

    def resample(self, group: VisitGroup, number: int) -> None:
        """Undo the visits of a group in the buffer, in pass `number`."""
        self._coordinate.fill_(self._run.coordinate(group, number))
        size = group.steps.shape
        if size not in self._recorded:
            steps = group.steps.to(self._tokens.device, copy=True)
            self._recorded[size] = steps, record(lambda: self._step(steps), self._tokens)
        steps, replay = self._recorded[size]
        steps.copy_(group.steps)
        replay()

    def _step(self, steps: torch.Tensor) -> None:
        positions, _ = self._run.chain.visits(steps)
        given = self._conditionals(self._tokens, positions, steps[..., 0])
        self._run.update(self._tokens, given, steps, self._coordinate)


def check(tokens: torch.Tensor) -> None:
    """Raise ValueError where no graph can be recorded."""
    if tokens.device.type != "cuda":
        raise ValueError(f"cuda_graph: got tokens on {tokens.device}; allowed: on a CUDA device")
    if checks_rows():
        raise ValueError("cuda_graph: got GGM_KERNELS_CHECK=1; allowed: without its checks")


def record(step: Callable[[], None], tokens: torch.Tensor) -> Callable[[], None]:
    """Record a step that writes to `tokens`, which are left as they are; returns what replays it."""
    with torch.cuda.device(tokens.device):  # a graph is recorded on a stream of the current one
        return _record(step, tokens)


def _record(step: Callable[[], None], tokens: torch.Tensor) -> Callable[[], None]:
    before = tokens.clone()
    current = torch.cuda.current_stream(tokens.device)
    aside = torch.cuda.Stream(tokens.device)
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    current.wait_stream(aside)
    tokens.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
