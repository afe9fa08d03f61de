"""How the reverse process is run."""

from __future__ import annotations

from dataclasses import dataclass

from ggm.redenoise import ReDenoise


@dataclass(frozen=True)
class Ramp:
    """A setting that is linear in chain time: `start` at T, where sampling starts, and `end` at 0."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Value after a share `progress` in [0, 1] of the way from T to 0."""
        return self.start + (self.end - self.start) * progress


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
        changes (`ggm.event_driven`); for networks that give all L at once, with one site per step.
    horizon : int or None
        Event-driven only: steps that an evaluation serves at most, 1 being exact; None is up to the
        end of the sweep, which bounds it in any case.
    temperature : float or Ramp
        Divides the logits of a draw.
    top_k, top_p, min_p : optional
        Filters of a draw, as in `ggm_kernels.glauber_step`; top_p may be a `Ramp`.
    redenoise : ReDenoise or None
        What follows when time 0 is reached.
    cuda_graph : bool
        Whether steps are recorded once per group size and replayed (`ggm.cuda_graphs`): the same
        samples with less time between kernels, on a CUDA device. A recording holds its numbers: no
        `Ramp`. Not with event_driven, whose steps depend on the tokens. Not run on a GPU yet.
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
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.sites_per_step < 1:
            raise ValueError(f"sites_per_step: got {self.sites_per_step}; allowed: 1 or more")
        if self.event_driven and self.sites_per_step != 1:
            raise ValueError(f"sites_per_step: got {self.sites_per_step}; allowed: 1 if event_driven")
        if self.horizon is not None and not (self.event_driven and self.horizon >= 1):
            raise ValueError(f"horizon: got {self.horizon}; allowed: None or, if event_driven, 1 or more")
        if self.cuda_graph and self.event_driven:
            raise ValueError("cuda_graph: got True with event_driven; allowed: one of them")
        for name in ("temperature", "top_p"):
            if self.cuda_graph and isinstance(getattr(self, name), Ramp):
                raise ValueError(
                    f"{name}: got a Ramp with cuda_graph, which holds one number; allowed: a number"
                )


def value_at(setting: float | Ramp | None, progress: float) -> float | None:
    """Value of a setting after a share `progress` in [0, 1] of the way from T to 0."""
    return setting.at(progress) if isinstance(setting, Ramp) else setting
