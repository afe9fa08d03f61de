"""The ops in Triton. Import only where `triton` is installed."""

from ggm_kernels.triton.corrupt import corrupt

__all__ = ["corrupt"]
