"""How good samples are: likelihood under a language model, diversity, distance to data, copies of data."""

from ggm.evaluation.distances import copied_share, frechet_distance, nearest_differences

__all__ = ["copied_share", "frechet_distance", "nearest_differences"]
