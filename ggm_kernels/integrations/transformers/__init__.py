"""Sampling of transformers' DiffusionGemma on these kernels, without logits of the whole vocabulary."""

from ggm_kernels.integrations.requirements import need

need("transformers", "5.20")

from ggm_kernels.integrations.linear_logits import LinearLogits  # noqa: E402
from ggm_kernels.integrations.transformers.generation import install  # noqa: E402
from ggm_kernels.integrations.transformers.linear_head import linear_head  # noqa: E402
from ggm_kernels.integrations.transformers.replaced import Replaced  # noqa: E402
from ggm_kernels.integrations.transformers.sampler import EntropyBoundSampler  # noqa: E402

__all__ = ["EntropyBoundSampler", "LinearLogits", "Replaced", "install", "linear_head"]
