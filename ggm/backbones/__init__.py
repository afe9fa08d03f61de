"""Networks whose prediction at a position does not see the token there."""

from __future__ import annotations

from typing import TypeAlias

from ggm.backbones.hollow import HollowConfig, HollowTransformer
from ggm.backbones.masked import MaskedConfig, MaskedTransformer

BackboneConfig: TypeAlias = MaskedConfig | HollowConfig
Backbone: TypeAlias = MaskedTransformer | HollowTransformer


def make_backbone(config: BackboneConfig, vocab_size: int, length: int) -> Backbone:
    """Network of a configuration, its weights random."""
    if isinstance(config, HollowConfig):
        return HollowTransformer(config, vocab_size, length)
    return MaskedTransformer(config, vocab_size, length)
