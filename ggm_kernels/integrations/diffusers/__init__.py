"""The schedulers of diffusers for discrete diffusion, on these kernels.

Names, signatures, outputs and configurations are those of diffusers, and each is a subclass of the one that
it stands in for: ``from_config`` goes both ways, pipelines take it. Tokens follow the same law. They are not
the same tokens: where diffusers asks `generator` for random numbers one by one, a step here takes one number
from it as the seed of its noise, which is then the same on every device and backend, and for every batch
with the same `sample_ids`.
"""

from ggm_kernels.integrations.requirements import need

need("diffusers", "0.42")

from ggm_kernels.integrations.diffusers.block_refinement import BlockRefinementScheduler  # noqa: E402
from ggm_kernels.integrations.diffusers.discrete_ddim import (  # noqa: E402
    DiscreteDDIMScheduler,
    PlugInDDIMScheduler,
)
from ggm_kernels.integrations.diffusers.entropy_bound import (  # noqa: E402
    EntropyBoundScheduler,
    EntropyBoundSchedulerOutput,
)
from ggm_kernels.integrations.linear_logits import LinearLogits  # noqa: E402

__all__ = [
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "EntropyBoundSchedulerOutput",
    "LinearLogits",
    "PlugInDDIMScheduler",
]
