"""Fused kernels for discrete diffusion: plain tensors in, plain tensors out."""

from ggm_kernels._version import __version__ as __version__
from ggm_kernels.backends import Backend, backends
from ggm_kernels.noise import NoiseLaw
from ggm_kernels.ops.commit import commit
from ggm_kernels.ops.corrupt import corrupt, random_tokens
from ggm_kernels.ops.glauber_shards import glauber_race, glauber_settle
from ggm_kernels.ops.glauber_step import glauber_step, linear_glauber_step
from ggm_kernels.ops.linear_cross_entropy import linear_cross_entropy
from ggm_kernels.ops.sigmoid_bce import linear_sigmoid_bce, sigmoid_bce
from ggm_kernels.randomness import Stream

__all__ = [
    "Backend",
    "NoiseLaw",
    "Stream",
    "backends",
    "commit",
    "corrupt",
    "glauber_race",
    "glauber_settle",
    "glauber_step",
    "linear_cross_entropy",
    "linear_glauber_step",
    "linear_sigmoid_bce",
    "random_tokens",
    "sigmoid_bce",
]
