"""Networks whose prediction at a position does not see the token there, and a plain one that does."""

from __future__ import annotations

from typing import TypeAlias

from ggm.backbones.denoiser import DenoiserConfig, DenoiserTransformer
from ggm.backbones.hollow import HollowConfig, HollowTransformer
from ggm.backbones.masked import MaskedConfig, MaskedTransformer

BackboneConfig: TypeAlias = MaskedConfig | HollowConfig | DenoiserConfig
Backbone: TypeAlias = MaskedTransformer | HollowTransformer | DenoiserTransformer


def make_backbone(config: BackboneConfig, vocab_size: int, length: int) -> Backbone:
    """Network of a configuration, its weights random."""
    if isinstance(config, HollowConfig):
        return HollowTransformer(config, vocab_size, length)
    if isinstance(config, DenoiserConfig):
        return DenoiserTransformer(config, vocab_size, length)
    return MaskedTransformer(config, vocab_size, length)
