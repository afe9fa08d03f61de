"""Networks whose prediction at a position does not see the token there."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from ggm.backbones.hollow import HollowConfig, HollowTransformer
from ggm.backbones.masked import MaskedConfig, MaskedTransformer

BackboneConfig: TypeAlias = MaskedConfig | HollowConfig
Backbone: TypeAlias = MaskedTransformer | HollowTransformer

KINDS: dict[str, type[MaskedConfig] | type[HollowConfig]] = {"masked": MaskedConfig, "hollow": HollowConfig}


def make_backbone(config: BackboneConfig, vocab_size: int, length: int) -> Backbone:
    """Network of a configuration, its weights random."""
    if isinstance(config, HollowConfig):
        return HollowTransformer(config, vocab_size, length)
    return MaskedTransformer(config, vocab_size, length)


def backbone_to_dict(config: BackboneConfig) -> dict[str, Any]:
    """Plain values, the kind of network among them."""
    (kind,) = (name for name, make in KINDS.items() if make is type(config))
    return {"kind": kind, **dataclasses.asdict(config)}


def backbone_from_dict(values: dict[str, Any]) -> BackboneConfig:
    """Inverse of `backbone_to_dict`; without a kind, masked.

    Raises
    ------
    ValueError
        For a kind that there is not.
    """
    kind = values.get("kind", "masked")
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; allowed: {sorted(KINDS)}")
    options = {name: value for name, value in values.items() if name != "kind"}
    if options.get("grid") is not None:
        options["grid"] = tuple(options["grid"])  # JSON has lists only
    return KINDS[kind](**options)
