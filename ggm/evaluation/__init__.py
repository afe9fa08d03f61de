"""Metrics: likelihood, generative perplexity, diversity, distance to data, copies of data.

Names are imported when they are first used: the configuration of the metrics needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm.evaluation.distances import copied_share, frechet_distance, nearest_differences

__all__ = ["copied_share", "frechet_distance", "nearest_differences"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ggm.evaluation' has no attribute {name!r}")
    from ggm.evaluation import distances

    return getattr(distances, name)
