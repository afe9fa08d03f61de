"""The steps of the reverse process that all its samplers have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from ggm.noising import Chain
from ggm.redenoise import renoise
from ggm.sampling_config import SamplingConfig, value_at
from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step


class LinearLogits(NamedTuple):
    """Logits hidden [B, K, d] @ weight [V, d].T + bias [V] that were not multiplied out."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class Conditionals(Protocol):
    """Logits g of the law of X_t at some positions, given X_t at all the others."""

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, time: int | torch.Tensor
    ) -> torch.Tensor | LinearLogits:
        """Logits at positions [K] of tokens [B, L] at time t: float [B, K, V], or their factors.

        The tokens that stand at `positions` must not influence the result. The time is an int; in a CUDA
        graph it is a 0-d int64 tensor.
        """
        ...


class VisitGroup(NamedTuple):
    """Visits resampled together: steps [K], positions [K], and the chain time they lead back to."""

    time: int
    steps: torch.Tensor
    positions: torch.Tensor


def visit_groups(
    chain: Chain, sites_per_step: int, visited: torch.Tensor | None = None, sweeps: int | None = None
) -> Iterator[VisitGroup]:
    """Visits of the chain in groups that stay within a sweep, from the last group to the first.

    Parameters
    ----------
    chain : Chain
        Visit order.
    sites_per_step : int
        Largest size of a group.
    visited : torch.Tensor, optional
        bool [L]: the positions to be visited; the others are left out. None is all.
    sweeps : int, optional
        How many sweeps, of the first in time, there are to undo; None is all.

    Yields
    ------
    VisitGroup
        Within a group no position occurs twice, and none is visited by the steps from `time` up to
        the last of the group but by the group itself: all its conditionals are those of X_time.
    """
    if visited is not None and not visited.any():
        return
    order = chain.positions.view(chain.sweeps, chain.length)
    for sweep in reversed(range(chain.sweeps if sweeps is None else sweeps)):
        ranks = torch.arange(chain.length)
        if visited is not None:
            ranks = ranks[visited.cpu()[order[sweep]]]
        for part in reversed(ranks.split(sites_per_step)):
            steps = sweep * chain.length + part
            yield VisitGroup(int(steps[0]), steps, order[sweep, part])


@dataclass(frozen=True)
class Reversal:
    """What all steps of one run share, and the steps that all samplers have in common.

    A run is a first pass from time T to 0 and then those of `ReDenoise`, from the end of a sweep to 0.
    """

    chain: Chain
    config: SamplingConfig
    seed: int
    sample_ids: torch.Tensor
    frozen: torch.Tensor | None
    noise: NoiseLaw | None
    vocab_size: int | None

    def __post_init__(self) -> None:
        again = self.config.redenoise
        if again is not None and again.sweeps > self.chain.sweeps:
            raise ValueError(f"redenoise: got {again.sweeps} sweeps; allowed: 1 to {self.chain.sweeps}")
        if again is not None and self.vocab_size is None:
            raise ValueError("vocab_size: got None with redenoise; allowed: the number of tokens")

    @property
    def sweeps(self) -> list[int]:
        """Sweeps that each pass undoes."""
        again = self.config.redenoise
        return [self.chain.sweeps] + ([] if again is None else [again.sweeps] * again.repeats)

    @property
    def visited(self) -> torch.Tensor | None:
        """Positions [L] that are visited in some sequence, as `visit_groups` takes them."""
        return None if self.frozen is None else ~self.frozen.all(dim=0)

    def site_updates(self) -> int:
        """Visits to undo in the whole run."""
        per_sweep = len(self.sample_ids) * self.chain.length
        if self.frozen is not None:
            per_sweep -= int(self.frozen.sum())
        return per_sweep * sum(self.sweeps)

    def start(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        """State at the start of a pass, given what was before; a new tensor."""
        if number == 0:
            return tokens.clone()
        assert self.vocab_size is not None
        return renoise(
            tokens,
            self.chain,
            self.sweeps[number],
            self.vocab_size,
            seed=self.seed,
            step=number,
            sample_ids=self.sample_ids,
            frozen=self.frozen,
            noise=self.noise,
        )

    def resample(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor | LinearLogits,
        group: VisitGroup,
        number: int,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Undo the visits of a group in place, in pass `number`; `rows` tell which sequences these are."""
        coordinate = self.coordinate(group.time, number)
        progress = 1.0 - group.time / self.chain.steps
        self.update(tokens, logits, group.steps.to(tokens.device), coordinate, progress, rows)

    def coordinate(self, time: int, number: int) -> int:
        """Noise coordinate of the step that leads to a time in pass `number`; no other step has it."""
        return number * self.chain.steps + time

    def update(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor | LinearLogits,
        steps: torch.Tensor,
        coordinate: int | torch.Tensor,
        progress: float = 0.0,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Undo the visits of steps [K] in place; `progress` of the way to time 0 is where ramps are."""
        config, ids, frozen = self.config, self.sample_ids, self.frozen
        if rows is not None:
            ids, frozen = ids[rows], None if frozen is None else frozen[rows]
        positions, rate = self.chain.visits(steps)
        options: dict[str, Any] = {
            "seed": self.seed,
            "step": coordinate,
            "temperature": value_at(config.temperature, progress),
            "top_k": config.top_k,
            "top_p": value_at(config.top_p, progress),
            "min_p": config.min_p,
            "noise_rate": rate.float().expand(len(tokens), -1) if config.keep_or_replace else None,
            "noise": self.noise,
            "normalize": config.keep_or_replace,
            "sample_ids": ids,
            "frozen": frozen,
        }
        if isinstance(logits, LinearLogits):
            hidden, weight, bias = logits
            linear_glauber_step(tokens, hidden, weight, positions, bias=bias, **options)
        else:
            glauber_step(tokens, logits, positions, **options)
