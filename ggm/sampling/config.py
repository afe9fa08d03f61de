"""Configuration of sampling: sites per step, process, order, temperature and filters, ramps, ReDeNoise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ggm.config import allow

if TYPE_CHECKING:
    import torch

Order = Literal["chain", "confidence", "random"]


@dataclass(frozen=True)
class Ramp:
    """A setting that is linear over the groups of steps: `start` at the first draws, `end` at the last.

    What is frozen is not drawn and does not count. If there is but one group it has `end`. `ReDenoise`
    goes as far back on the ramp as its sweeps reach. Correctors have the value that their sweep ended with.
    In an order of their own (`SamplingConfig.order`) sequences have evaluations in place of groups.
    """

    start: float
    end: float

    def at(self, progress: float | torch.Tensor) -> float | torch.Tensor:
        """Value after a share `progress` in [0, 1] of the way from T to 0, or after one per sequence."""
        return self.start * (1.0 - progress) + self.end * progress


@dataclass(frozen=True)
class ReDenoise:
    """Noise samples again and denoise them again.

    Attributes
    ----------
    sweeps : int
        Noise the samples by the first sweeps of the chain.
    repeats : int
        How many times.
    """

    sweeps: int
    repeats: int = 1

    def __post_init__(self) -> None:
        _check_integers(self, "sweeps", "repeats")
        if self.sweeps < 1 or self.repeats < 1:
            raise ValueError(f"sweeps, repeats: got {self.sweeps}, {self.repeats}; allowed: 1 or more")


@dataclass(frozen=True)
class SamplingConfig:
    """How the reverse process is run.

    Attributes
    ----------
    sites_per_step : int
        Consecutive visits of the chain K that are resampled together, from one evaluation of the
        conditionals. 1 is exact; more treats the K positions as independent given the others.
    keep_or_replace : bool
        Whether a token is first kept with the classifier's probability that it is signal (the
        posterior of the chain) rather than always resampled (heat bath). Equally exact.
    event_driven : bool
        Whether one evaluation of all L conditionals serves every step up to the next token that
        changes (`ggm.sampling.event_driven`); for networks that give all L at once, with one site per step.
    horizon : int or None
        With `event_driven`: visits of a sequence that an evaluation serves at most, 1 being exact; None
        is up to the end of the sweep, which bounds it in any case.
    temperature : float or Ramp
        Divides the logits of a draw; 0 takes the likeliest token.
    top_k : int or None
        Draw from the so many likeliest tokens.
    top_p : float, Ramp or None
        Draw from the fewest likeliest tokens whose probabilities sum to this.
    min_p : float or None
        Draw from tokens at least so many times as likely as the likeliest.
    redenoise : ReDenoise or None
        What follows when time 0 is reached.
    corrector_sweeps : int
        Heat-bath sweeps at the end of every sweep but the last, at the time that it has led back to: they
        leave the distribution of X_t as it is, and mend what groups of sites or a network got wrong.
    cuda_graph : bool
        Whether steps are recorded once per group size and replayed (`ggm.sampling.cuda_graphs`): the same
        samples with less time between kernels, on a CUDA device. A recording holds its numbers: no
        `Ramp`. Not with `event_driven`, whose steps depend on the tokens. Not run on a GPU yet.
    order : str
        "chain": sites in the order of the chain's visits, sweep by sweep. "random": every site once, from
        noise to data, in a random order of each sequence's own (`ggm.sampling.any_order`); exact with one
        site per step. "confidence": the same, but first the tokens that are drawn with the largest
        probability; not exact, as it favours likely tokens, but good where tokens follow from others, as in
        puzzles. Both are for networks that give all L at once, predict the data and have been trained with
        some tokens given (`GGMConfig.frozen_share`).
    confidence_threshold : float or None
        With `order` "confidence": an evaluation settles all tokens of at least this probability, too, beyond
        its `sites_per_step`, so that certain ones cost few evaluations.
    evaluations_per_pass : int or None
        With `order` "confidence" or "random", in place of `sites_per_step`: each sequence spreads its open
        positions over so many evaluations, those with few of them, too.
    """

    sites_per_step: int = 1
    keep_or_replace: bool = False
    event_driven: bool = False
    horizon: int | None = None
    temperature: float | Ramp = 1.0
    top_k: int | None = None
    top_p: float | Ramp | None = None
    min_p: float | None = None
    redenoise: ReDenoise | None = None
    corrector_sweeps: int = 0
    cuda_graph: bool = False
    order: Order = "chain"
    confidence_threshold: float | None = None
    evaluations_per_pass: int | None = None

    def __post_init__(self) -> None:
        from ggm_kernels import checks  # brings torch, which the help of commands does without

        _check_integers(self, "sites_per_step", "horizon", "corrector_sweeps")
        allow(self, "sites_per_step", self.sites_per_step >= 1, "1 or more")
        allow(self, "sites_per_step", not self.event_driven or self.sites_per_step == 1, "1 if event_driven")
        if self.horizon is not None and not (self.event_driven and self.horizon >= 1):
            raise ValueError(f"horizon: got {self.horizon}; allowed: None or, if event_driven, 1 or more")
        allow(self, "corrector_sweeps", self.corrector_sweeps >= 0, "0 or more")
        if self.corrector_sweeps and (self.event_driven or self.cuda_graph):
            raise ValueError(
                f"corrector_sweeps: got {self.corrector_sweeps} with event_driven or cuda_graph; allowed: 0"
            )
        if self.cuda_graph and self.event_driven:
            raise ValueError("cuda_graph: got True with event_driven; allowed: one of them")
        self._check_order()
        for name in self.ramps:
            if self.cuda_graph:
                raise ValueError(
                    f"{name}: got a Ramp with cuda_graph, which holds one number; allowed: a number"
                )
        for name, value in _ends("temperature", self.temperature):
            checks.number(name, value, low=0.0, high=math.inf)
        for name, value in _ends("top_p", self.top_p):
            checks.number(name, value, low=0.0, high=1.0, open_low=True)
        if self.top_k is not None:
            checks.integer("top_k", self.top_k, low=1, high=2**63)
        if self.min_p is not None:
            checks.number("min_p", self.min_p, low=0.0, high=1.0)

    def _check_order(self) -> None:
        from ggm_kernels import checks

        allow(self, "order", self.order in get_args(Order), ", ".join(get_args(Order)))
        others = ("event_driven", "corrector_sweeps", "cuda_graph")
        given = [name for name in others if getattr(self, name)]
        if self.order != "chain" and given:
            raise ValueError(f"order: got {self.order!r} with {', '.join(given)}; allowed: chain")
        threshold = self.confidence_threshold
        if threshold is not None and not (self.order == "confidence" and 0.0 < threshold <= 1.0):
            raise ValueError(
                f"confidence_threshold: got {threshold}; allowed: None or, if `order` is confidence, "
                "above 0, at most 1"
            )
        evaluations = self.evaluations_per_pass
        if evaluations is None:
            return
        if self.order == "chain" or self.sites_per_step != 1:
            raise ValueError(
                f"evaluations_per_pass: got {evaluations}; allowed: None or, if `order` is confidence or "
                "random, in place of sites_per_step"
            )
        checks.integer("evaluations_per_pass", evaluations, low=1, high=2**31)

    @property
    def ramps(self) -> list[str]:
        """Names of the settings that change on the way."""
        return [name for name in ("temperature", "top_p") if isinstance(getattr(self, name), Ramp)]


def _check_integers(config: ReDenoise | SamplingConfig, *names: str) -> None:
    """Raise TypeError unless settings, where there are any, are integers."""
    from ggm_kernels import checks

    for name in names:
        value = getattr(config, name)
        if value is not None:
            checks.integer(name, value, low=-(2**63), high=2**63)


def _ends(name: str, setting: float | Ramp | None) -> list[tuple[str, float]]:
    """Numbers between which a setting stays, with their names."""
    if isinstance(setting, Ramp):
        return [(f"{name}.start", setting.start), (f"{name}.end", setting.end)]
    return [] if setting is None else [(name, setting)]


def value_at(setting: float | Ramp | None, progress: float | torch.Tensor) -> float | torch.Tensor | None:
    """Value of a setting after a share `progress` in [0, 1] of the way from T to 0."""
    return setting.at(progress) if isinstance(setting, Ramp) else setting
