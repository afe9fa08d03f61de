"""Losses as products of the library over tiles of logits, a backend's kernels between them."""
