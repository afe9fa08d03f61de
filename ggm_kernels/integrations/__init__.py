"""Samplers of other libraries on these kernels. Nothing is imported before a module of this folder is."""
