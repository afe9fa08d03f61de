"""Glauber generative models on top of `ggm_kernels`: chain, networks, training, sampling.

Names are imported when they are first used, so that the command line can settle how torch's threads
wait before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm.backbones.denoiser import DenoiserConfig
    from ggm.backbones.hollow import HollowConfig
    from ggm.backbones.masked import MaskedConfig
    from ggm.chain import Chain, ChainConfig
    from ggm.converted import from_denoiser
    from ggm.model import GGM
    from ggm.model_config import GGMConfig
    from ggm.objective import ObjectiveConfig
    from ggm.sampling.config import Ramp, ReDenoise, SamplingConfig
    from ggm.sampling.stepwise import SampleResult
    from ggm.training.config import TrainingConfig
    from ggm.training.in_memory import train

__all__ = [
    "GGM",
    "Chain",
    "ChainConfig",
    "DenoiserConfig",
    "GGMConfig",
    "HollowConfig",
    "MaskedConfig",
    "ObjectiveConfig",
    "Ramp",
    "ReDenoise",
    "SampleResult",
    "SamplingConfig",
    "TrainingConfig",
    "from_denoiser",
    "train",
]

_HOMES = {
    "ggm.backbones.denoiser": ("DenoiserConfig",),
    "ggm.backbones.hollow": ("HollowConfig",),
    "ggm.backbones.masked": ("MaskedConfig",),
    "ggm.model": ("GGM",),
    "ggm.model_config": ("GGMConfig",),
    "ggm.chain": ("Chain", "ChainConfig"),
    "ggm.converted": ("from_denoiser",),
    "ggm.objective": ("ObjectiveConfig",),
    "ggm.sampling.stepwise": ("SampleResult",),
    "ggm.sampling.config": ("Ramp", "ReDenoise", "SamplingConfig"),
    "ggm.training.config": ("TrainingConfig",),
    "ggm.training.in_memory": ("train",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'ggm' has no attribute {name!r}")
