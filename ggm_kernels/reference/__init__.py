"""The oracle: every op in plain PyTorch, readable as its formula, on any device."""

from ggm_kernels.reference.commit import commit
from ggm_kernels.reference.corrupt import corrupt
from ggm_kernels.reference.glauber_shards import glauber_race, glauber_settle, linear_glauber_race
from ggm_kernels.reference.glauber_step import glauber_step, linear_glauber_step
from ggm_kernels.reference.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_sum,
)
from ggm_kernels.reference.linear_expected_embedding import (
    linear_expected_embedding,
    linear_expected_embedding_backward,
)
from ggm_kernels.reference.shared_sigmoid_bce import shared_sigmoid_bce, shared_sigmoid_bce_backward
from ggm_kernels.reference.sigmoid_bce import (
    linear_sigmoid_bce,
    linear_sigmoid_bce_backward,
    sigmoid_bce,
    sigmoid_bce_backward,
)

__all__ = [
    "commit",
    "corrupt",
    "glauber_race",
    "glauber_settle",
    "glauber_step",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_sum",
    "linear_expected_embedding",
    "linear_expected_embedding_backward",
    "linear_glauber_race",
    "linear_glauber_step",
    "linear_sigmoid_bce",
    "linear_sigmoid_bce_backward",
    "shared_sigmoid_bce",
    "shared_sigmoid_bce_backward",
    "sigmoid_bce",
    "sigmoid_bce_backward",
]
