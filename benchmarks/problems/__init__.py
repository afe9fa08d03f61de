"""Per op: inputs of a size, what PyTorch users write, and ours; benchmarks and the guard time them."""

from benchmarks.problems import (
    clients,
    commit,
    corrupt,
    glauber_step,
    linear_cross_entropy,
    linear_sigmoid_bce,
    sigmoid_bce,
)

__all__ = [
    "clients",
    "commit",
    "corrupt",
    "glauber_step",
    "linear_cross_entropy",
    "linear_sigmoid_bce",
    "sigmoid_bce",
]
