"""Which visits of the chain one pass of the network serves: those of each sequence, and groups of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ggm.chain import Chain


class VisitGroup(NamedTuple):
    """Visits resampled together: the same for all sequences, or for each sequence its own.

    Attributes
    ----------
    time : int or torch.Tensor
        Chain time they lead back to; int64 [B] where sequences differ.
    steps, positions : torch.Tensor
        int64 [K], or [B, K] where sequences differ. A sequence that has less than K visits to be undone
        has frozen positions in the other places.
    coordinate : int
        Noise coordinate: the number, within its sweep, of a sequence's first visit in the group, not
        counting frozen positions, on top of L for every sweep before. Without frozen positions it is
        the time.
    progress : float or torch.Tensor
        Share of the way to time 0, 0 for a sequence's last group in time and 1 for its first; float64
        [B] where sequences differ.
    """

    time: int | torch.Tensor
    steps: torch.Tensor
    positions: torch.Tensor
    coordinate: int
    progress: float | torch.Tensor


@dataclass(frozen=True)
class OwnVisits:
    """The visits of a chain that concern each sequence: those of positions that are not frozen in it.

    All tensors are on the CPU.

    Attributes
    ----------
    chain : Chain
        Visit order.
    steps : torch.Tensor
        int64 [S, R, L], R being 1 if the sequences have the same frozen positions, else B. In every sweep
        the steps that concern the sequence come first, then the others, both in the order of time.
    counts : torch.Tensor
        int64 [R]: how many steps of a sweep concern the sequence.
    """

    chain: Chain
    steps: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, chain: Chain, frozen: torch.Tensor | None = None) -> OwnVisits:
        """Visits of a chain outside frozen positions, bool [B, L]; None is none."""
        given = torch.zeros(1, chain.length, dtype=torch.bool)
        if frozen is not None and len(frozen):
            given = frozen.cpu()
        if bool((given == given[0]).all()):
            given = given[:1]
        order = chain.positions.view(chain.sweeps, chain.length)
        ranks = given[:, order].movedim(1, 0).long().argsort(dim=-1, stable=True)
        starts = torch.arange(chain.sweeps)[:, None, None] * chain.length
        return cls(chain, starts + ranks, (~given).sum(dim=1))

    def groups(
        self, sites: int, sweeps: int | None = None, device: torch.device | None = None
    ) -> Iterator[VisitGroup]:
        """Groups of at most `sites` visits within a sweep, from the last group to the first.

        Parameters
        ----------
        sites : int
            Largest size of a group.
        sweeps : int, optional
            How many sweeps, of the first in time, there are to undo; None is all.
        device : torch.device, optional
            Where steps, positions and times of a group are to be; None is the CPU. They are copied sweep by
            sweep: each copy has to wait for the device.

        Yields
        ------
        VisitGroup
            Within a group no position occurs twice in a sequence, and none is visited by the steps from
            `time` up to the last of the group but by the group itself: all its conditionals are those
            of X_time. The groups of a sequence are those that it has alone. Where it has fewer than
            others it waits, at the end of the sweep.
        """
        length, most = self.chain.length, int(self.counts.max())
        firsts, every = torch.arange(0, most, sites), torch.arange(self.chain.sweeps)[:, None, None]
        ends = (every + 1) * length
        steps: Any = self.steps
        times: Any = torch.where(firsts[:, None] < self.counts, steps[..., firsts].movedim(2, 1), ends)
        progress: Any = self._progress(sites, every, firsts[:, None], self.counts)
        if len(self.counts) == 1:  # plain numbers, which are faster to take one by one
            steps, times, progress = steps[:, 0], times[..., 0].tolist(), progress[..., 0].tolist()
        here = self.steps.device if device is None else device
        for sweep in reversed(range(self.chain.sweeps if sweeps is None else sweeps)):
            of_sweep, at = steps[sweep].to(here), times[sweep]
            at = at if isinstance(at, list) else at.to(here)
            positions, _ = self.chain.visits(of_sweep)
            for number, first in reversed(list(enumerate(firsts.tolist()))):
                part = slice(first, min(first + sites, most))
                yield VisitGroup(
                    at[number],
                    of_sweep[..., part],
                    positions[..., part],
                    sweep * length + first,
                    progress[sweep][number],
                )

    def groups_per_sweep(self, sites: int) -> int:
        """How many groups a sweep has, in the sequence that has the most."""
        return -(-int(self.counts.max()) // sites)

    def split(self, visits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sweep, and number in that sweep, of a visit of each sequence, int64 [B], counted from time 0."""
        per_sweep = self.counts.clamp_min(1)  # a sequence without visits is not asked for, or for its first
        return visits // per_sweep, visits % per_sweep

    def times(self, visits: torch.Tensor) -> torch.Tensor:
        """Chain time that a visit of each sequence leads back to, int64 [B], counted from time 0."""
        sweeps, numbers = self.split(visits)
        return self.steps[sweeps, self._own(torch.arange(len(visits))), numbers]

    def visit(self, sweep: int, number: int, rows: torch.Tensor) -> VisitGroup:
        """One visit of each of the sequences `rows`, int64 [R]: that of this number in a sweep."""
        own = self._own(rows)
        steps = self.steps[sweep, own, number][:, None]
        progress = self._progress(1, sweep, number, self.counts[own])
        coordinate = sweep * self.chain.length + number
        return VisitGroup(steps[:, 0], steps, self.chain.positions[steps], coordinate, progress)

    def _own(self, rows: torch.Tensor) -> torch.Tensor:
        """Where `steps` and `counts` have those of some sequences."""
        return rows if len(self.counts) > 1 else torch.zeros_like(rows)

    def _progress(
        self, sites: int, sweep: int | torch.Tensor, first: int | torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Share of the way to time 0 at the group of a visit; 1 if a chain has but one group. float64."""
        per_sweep = (counts + sites - 1) // sites
        last = (self.chain.sweeps * per_sweep - 1).clamp_min(1).double()
        # Out of range where a sequence has no visit in this group.
        return (1.0 - (sweep * per_sweep + first // sites) / last).clamp(0.0, 1.0)
