"""The noising chain: chain time, visit order, noise schedule and its closed form.

Chain time t runs over 0..T. Step t (0 <= t < T) visits one position i_t and turns X_t into X_{t+1}:
with probability eps_t a noise token replaces the one that is there. A *sweep* is L steps that visit
every position once; the chain makes S sweeps, so T = S * L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ggm.config import allow
from ggm.draws import uniforms
from ggm_kernels import Stream
from ggm_kernels.randomness import MAX_SEED

# Share of data tokens left at progress u in [0, 1] of the chain, before the floor of `final_keep`.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: math.cos(0.5 * math.pi * u) ** 2,
    "sine": lambda u: 1.0 - math.sin(0.5 * math.pi * u),
}


@dataclass(frozen=True)
class ChainConfig:
    """The noising chain.

    Attributes
    ----------
    length : int
        Positions per sequence L.
    sweeps : int
        Visits of every position S; the chain has T = S * L steps.
    schedule : str
        Share of data tokens left after each sweep: a key of `SCHEDULES`. Our own choice, as every
        value here: the paper's are not known to us.
    final_keep : float
        Probability that a position still holds its data token at time T, in (0, 1). Sampling starts
        from pure noise, so what is not 0 here is an error of the sampler.
    order : str
        "permutation" (one random permutation for all sweeps), "reshuffled" (another one for each
        sweep) or "raster" (0, 1, .., L - 1).
    order_seed : int
        Seed of the permutations: 0 to 2**64 - 1.
    """

    length: int
    sweeps: int = 8
    schedule: str = "cosine"
    final_keep: float = 1e-3
    order: str = "permutation"
    order_seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.sweeps < 1:
            raise ValueError(f"length, sweeps: got {self.length}, {self.sweeps}; allowed: 1 or more")
        allow(self, "final_keep", 0.0 < self.final_keep < 1.0, "above 0, below 1")
        allow(self, "schedule", self.schedule in SCHEDULES, ", ".join(sorted(SCHEDULES)))
        allow(self, "order", self.order in ORDERS, ", ".join(sorted(ORDERS)))
        allow(self, "order_seed", 0 <= self.order_seed < MAX_SEED, "0 to 2**64 - 1")


def _random_orders(config: ChainConfig, count: int) -> torch.Tensor:
    draws = uniforms(torch.arange(count), config.length, stream=Stream.VISIT_ORDER, seed=config.order_seed)
    return draws.argsort(dim=1, stable=True)


# Position of every visit, int64 [S, L]: each row is a permutation of the positions.
ORDERS: dict[str, Callable[[ChainConfig], torch.Tensor]] = {
    "permutation": lambda config: _random_orders(config, 1).expand(config.sweeps, -1),
    "reshuffled": lambda config: _random_orders(config, config.sweeps),
    "raster": lambda config: torch.arange(config.length).expand(config.sweeps, -1),
}


def sweep_noise_rates(config: ChainConfig) -> torch.Tensor:
    """Noise rates, constant within a sweep, that leave the scheduled share of data after each.

    Parameters
    ----------
    config : ChainConfig
        The schedule, the number of sweeps and the share left at the end.

    Returns
    -------
    torch.Tensor
        eps_t, float64 [T], each in (0, 1).
    """
    shape = SCHEDULES[config.schedule]
    floor = config.final_keep
    keep = [floor + (1.0 - floor) * shape(s / config.sweeps) for s in range(config.sweeps + 1)]
    rates = [1.0 - after / before for before, after in zip(keep[:-1], keep[1:], strict=True)]
    return torch.tensor(rates, dtype=torch.float64).repeat_interleave(config.length)


class _Tables(NamedTuple):
    """What a chain looks up, on one device."""

    positions: torch.Tensor  # [T]
    noise_rate: torch.Tensor  # [T]
    rank: torch.Tensor  # [S, L]: how many positions sweep s visits before position i
    kept: torch.Tensor  # [S + 1, L]: probability to hold the data token after the first n visits
    kept_bounds: torch.Tensor  # [S]: running shares of the data that is left in the sweeps, up to 1


CPU = torch.device("cpu")


class Chain:
    """Visit order and noise rates of a chain, and the distribution of X_t given the data in closed form.

    Parameters
    ----------
    order : torch.Tensor
        Positions in the order of their visits, int64 [S, L]; every row a permutation of 0..L - 1.
    noise_rate : torch.Tensor
        eps_t of every step, floating [T], T = S * L, each in [0, 1].

    Attributes
    ----------
    length, sweeps, steps : int
        L, S and T.
    positions : torch.Tensor
        i_t, int64 [T].
    noise_rate : torch.Tensor
        eps_t, float64 [T].

    Raises
    ------
    ValueError
        If a row of `order` is not a permutation, or `noise_rate` has another length or leaves [0,
        1].
    """

    def __init__(self, order: torch.Tensor, noise_rate: torch.Tensor) -> None:
        self.sweeps, self.length = order.shape
        self.steps = self.sweeps * self.length
        expected = torch.arange(self.length).expand_as(order)
        if not torch.equal(order.sort(dim=1).values, expected):
            raise ValueError(f"order: got {order.tolist()}; allowed: rows that are permutations")
        if noise_rate.shape != (self.steps,):
            raise ValueError(f"noise_rate: got shape {tuple(noise_rate.shape)}; allowed: ({self.steps},)")
        if not bool(((noise_rate >= 0) & (noise_rate <= 1)).all()):
            raise ValueError("noise_rate: got values outside; allowed: [0, 1]")
        self.positions = order.flatten()
        self.noise_rate = noise_rate.to(torch.float64)
        rank = order.argsort(dim=1)
        survival = (1.0 - self.noise_rate).view(self.sweeps, self.length).gather(1, rank)
        ones = torch.ones(1, self.length, dtype=torch.float64)
        kept = torch.cat([ones, survival.cumprod(dim=0)])
        mean = kept.mean(dim=1)
        bounds = (mean[:-1] + mean[1:]).cumsum(dim=0)
        self._tables = {CPU: _Tables(self.positions, self.noise_rate, rank, kept, bounds / bounds[-1])}

    @classmethod
    def from_config(cls, config: ChainConfig) -> Chain:
        """Chain of a configuration."""
        return cls(ORDERS[config.order](config), sweep_noise_rates(config))

    def keep_prob(self, times: torch.Tensor) -> torch.Tensor:
        """Probability alpha_{i,t} that position i of X_t still holds the data token.

        Parameters
        ----------
        times : torch.Tensor
            Chain times t in [0, T], int64 [B].

        Returns
        -------
        torch.Tensor
            float64 [B, L]: the product of (1 - eps_s) over the visits s < t of each position. Cast
            to float32 for `ggm_kernels.corrupt`.

        Raises
        ------
        IndexError
            For a time outside [0, T], on the CPU.
        """
        # On other devices a look at the values would stall the caller until they are there.
        if times.device.type == "cpu" and ((times < 0) | (times > self.steps)).any():
            raise IndexError(f"times: got {times.tolist()}; allowed: [0, {self.steps}]")
        tables = self._on(times.device)
        done = torch.div(times, self.length, rounding_mode="floor")
        within = times - done * self.length
        rank = tables.rank[done.clamp_max(self.sweeps - 1)]
        visits = done[:, None] + (rank < within[:, None]).long()
        return tables.kept.gather(0, visits)

    def sweeps_by_kept(self, values: torch.Tensor) -> torch.Tensor:
        """Map uniform numbers in [0, 1) to sweeps, in proportion to the mean share of data left in each.

        That is the mean over positions, before and after the sweep's visits. int64, the shape of `values`.
        """
        return torch.searchsorted(self._on(values.device).kept_bounds, values.contiguous(), right=True)

    def visits(self, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions that steps visit, and their noise rates.

        Parameters
        ----------
        steps : torch.Tensor
            Steps t in [0, T), int64, any shape.

        Returns
        -------
        positions : torch.Tensor
            i_t, int64, the shape of `steps`.
        noise_rate : torch.Tensor
            eps_t, float64, the shape of `steps`.
        """
        tables = self._on(steps.device)
        return tables.positions[steps], tables.noise_rate[steps]

    def _on(self, device: torch.device) -> _Tables:
        if device not in self._tables:
            self._tables[device] = _Tables(*(table.to(device) for table in self._tables[CPU]))
        return self._tables[device]


def log_odds(noise_rate: torch.Tensor) -> torch.Tensor:
    """Prior log-odds of signal against noise, log((1 - eps) / eps), in the dtype of eps."""
    return torch.log1p(-noise_rate) - noise_rate.log()
