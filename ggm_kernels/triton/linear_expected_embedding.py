"""`linear_expected_embedding` beside Triton's kernels: the products on tiles that every device has."""

from functools import partial

from ggm_kernels.native import linear_expected_embedding as tiles

linear_expected_embedding = partial(tiles.linear_expected_embedding, None)
linear_expected_embedding_backward = partial(tiles.linear_expected_embedding_backward, None)
