"""All systems of the bench by name, and the ablations of GGM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.quality.autoregressive import Autoregressive
from benchmarks.quality.glauber import Glauber
from benchmarks.quality.mdlm import MDLM
from benchmarks.quality.sedd import SEDD
from benchmarks.quality.system import Shape
from benchmarks.quality.uniform import UniformDiffusion
from ggm.objective import ObjectiveConfig

# GGM that predicts the data token, by cross-entropy.
DATA: dict[str, Any] = {"predicts": "data", "objective": ObjectiveConfig("cross_entropy")}
MAKERS: dict[str, Callable[[Shape], Any]] = {
    "ggm-hollow": lambda shape: Glauber(shape, "hollow"),
    "ggm-data": lambda shape: Glauber(shape, "hollow", **DATA),
    "ggm-data-kept": lambda shape: Glauber(shape, "hollow", training_times="kept", **DATA),
    "ggm-denoiser": lambda shape: Glauber(shape, "denoiser", **DATA),
    "ggm-masked": lambda shape: Glauber(shape, "masked"),
    "mdlm": MDLM,
    "sedd-absorbing": lambda shape: SEDD(shape, "absorbing"),
    "sedd-uniform": lambda shape: SEDD(shape, "uniform"),
    "uniform": UniformDiffusion,
    "autoregressive": Autoregressive,
}
SYSTEMS = tuple(MAKERS)
# GGM with one thing changed; the name says which. The first is the one that the others are held against.
ABLATIONS: dict[str, dict[str, Any]] = {
    "ggm-hollow": {},
    "sweeps=2": {"sweeps": 2},
    "sweeps=8": {"sweeps": 8},
    "schedule=linear": {"schedule": "linear"},
    "schedule=sine": {"schedule": "sine"},
    "order=reshuffled": {"order": "reshuffled"},
    "order=raster": {"order": "raster"},
    "form=observed": {"objective": ObjectiveConfig("observed")},
    "form=cross_entropy": {"objective": ObjectiveConfig("cross_entropy")},
    "noise_ratio=1": {"objective": ObjectiveConfig("marginal", noise_ratio=1.0)},
    "noise_ratio=1000": {"objective": ObjectiveConfig("marginal", noise_ratio=1000.0)},
}


def make_system(name: str, shape: Shape) -> Any:
    """System of a name in `SYSTEMS` or `ABLATIONS`, its weights random."""
    if name in ABLATIONS:
        return Glauber(shape, "hollow", **ABLATIONS[name])
    return MAKERS[name](shape)
