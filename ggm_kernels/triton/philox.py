"""Random words at logical coordinates, inside Triton kernels (layout: `ggm_kernels.randomness`)."""

import triton
import triton.language as tl


@triton.jit
def words_at(seed, step, sample_id, position_block, vocab_block, STREAM: tl.constexpr):
    """Four blocks of uint32 words.

    `step` is an integer scalar, `sample_id` int64, `position_block` any integer: scalars or blocks;
    `vocab_block` a constant, a uint32 scalar or a block. Blocks broadcast.
    """
    sample_high = ((sample_id >> 32) << 24).to(tl.uint32)
    c0 = sample_high | vocab_block | (STREAM << 20)
    c1 = position_block.to(tl.uint32)
    # A small seed arrives as a 32-bit integer, which int64 extends with its sign.
    return tl.philox(seed.to(tl.int64), c0, c1, sample_id.to(tl.uint32), step.to(tl.uint32))
