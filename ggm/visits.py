"""Which visits of a chain concern each sequence, and in which groups they are undone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ggm.noising import Chain


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

    def group(self, sweep: int, first: int, sites: int, rows: torch.Tensor | None = None) -> VisitGroup:
        """Visits `first` to `first + sites - 1` of each sequence in a sweep, frozen positions not counted.

        `rows` int64 [B] tells which sequences they are of, each then with its own; None is all of them.
        """
        counts, end = self.counts, min(first + sites, int(self.counts.max()))
        steps = self.steps[sweep, :, first:end]
        progress = self._progress(sweep, first // sites, sites)
        # A sequence without a visit in this group waits at the end of the sweep.
        time = torch.where(first < counts, steps[:, 0], (sweep + 1) * self.chain.length)
        coordinate = sweep * self.chain.length + first
        if rows is not None:
            rows = rows if len(counts) > 1 else torch.zeros_like(rows)
            steps, time, progress = steps[rows], time[rows], progress[rows]
        elif len(counts) == 1:
            steps = steps[0]
            return VisitGroup(int(time), steps, self.chain.positions[steps], coordinate, float(progress))
        return VisitGroup(time, steps, self.chain.positions[steps], coordinate, progress)

    def groups(self, sites: int, sweeps: int | None = None) -> Iterator[VisitGroup]:
        """Groups of at most `sites` visits within a sweep, from the last group to the first.

        Parameters
        ----------
        sites : int
            Largest size of a group.
        sweeps : int, optional
            How many sweeps, of the first in time, there are to undo; None is all.

        Yields
        ------
        VisitGroup
            Within a group no position occurs twice in a sequence, and none is visited by the steps from
            `time` up to the last of the group but by the group itself: all its conditionals are those
            of X_time. The groups of a sequence are those that it has alone.
        """
        for sweep in reversed(range(self.chain.sweeps if sweeps is None else sweeps)):
            for number in reversed(range(self.groups_per_sweep(sites))):
                yield self.group(sweep, number * sites, sites)

    def groups_per_sweep(self, sites: int) -> int:
        """How many groups a sweep has, in the sequence that has the most."""
        return -(-int(self.counts.max()) // sites)

    def _progress(self, sweep: int, number: int, sites: int) -> torch.Tensor:
        """Share of the way to time 0 at a group of a sweep, float64 [R]; 1 if a chain has but one group."""
        per_sweep = (self.counts + sites - 1) // sites
        last = (self.chain.sweeps * per_sweep - 1).clamp_min(1).double()
        # Out of range where a sequence has no visit in this group.
        return (1.0 - (sweep * per_sweep + number) / last).clamp(0.0, 1.0)
