"""Builds ``ggm_kernels._native`` for setup.py; knows nothing of torch or setuptools."""
