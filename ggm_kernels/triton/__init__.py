"""The ops in Triton. Import only where `triton` is installed."""

from ggm_kernels.triton.commit import commit
from ggm_kernels.triton.corrupt import corrupt
from ggm_kernels.triton.glauber_step import glauber_step
from ggm_kernels.triton.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_sum,
)
from ggm_kernels.triton.linear_glauber_step import linear_glauber_step
from ggm_kernels.triton.shared_sigmoid_bce import shared_sigmoid_bce, shared_sigmoid_bce_backward
from ggm_kernels.triton.sigmoid_bce import (
    linear_sigmoid_bce,
    linear_sigmoid_bce_backward,
    sigmoid_bce,
    sigmoid_bce_backward,
)

__all__ = [
    "commit",
    "corrupt",
    "glauber_step",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_sum",
    "linear_glauber_step",
    "linear_sigmoid_bce",
    "linear_sigmoid_bce_backward",
    "shared_sigmoid_bce",
    "shared_sigmoid_bce_backward",
    "sigmoid_bce",
    "sigmoid_bce_backward",
]
