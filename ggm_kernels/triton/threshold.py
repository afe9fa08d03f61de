"""What top-k, top-p and min-p leave of rows of logits, in Triton: the lowest z that stays, without sorting.

z is the logit relative to the largest of its row, over the temperature. The bits of -z, the depth, grow as z
falls, so a search over them, two bits a pass, ends at the exact value. Equal logits share one fate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.triton.race import tempered

_NO_DEPTH = tl.constexpr(0x7FFFFFFF)  # deeper than that of -inf
_PASSES = tl.constexpr(16)  # of two bits each


@triton.jit
def load_logits(row_ptr, vocab_stride, start, end, inside, BLOCK: tl.constexpr):
    """Logits [ROWS, BLOCK] of tokens start .. start + BLOCK - 1 in float32; -inf from `end` on."""
    token = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    mask = inside[:, None] & (token < end)[None, :]
    at = row_ptr[:, None] + token.to(tl.int64)[None, :] * vocab_stride
    return tl.load(at, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def _load_law(row_ptr, vocab_stride, start, end, inside, top, inverse_temperature, BLOCK: tl.constexpr):
    """Depth and z of tokens; the depth of what is no token is beyond all others."""
    g = load_logits(row_ptr, vocab_stride, start, end, inside, BLOCK)
    g = tl.where(g != g, float("-inf"), g)
    z = tempered(g, top[:, None], inverse_temperature)
    depth = z.to(tl.uint32, bitcast=True) & _NO_DEPTH
    is_token = (start + tl.arange(0, BLOCK) < end)[None, :]
    return tl.where(is_token, depth, _NO_DEPTH), z


@triton.jit
def _mass_units(z):
    """exp(z) in units of 2**-40: integers, whose sums do not depend on their order."""
    return (tl.exp(z) * 1099511627776.0).to(tl.int64)


@triton.jit
def _mass_above(
    row_ptr, vocab_stride, end, inside, top, deepest, inverse_temperature,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mass of the tokens that are no deeper than `deepest`."""
    mass = tl.zeros([ROWS, BLOCK], dtype=tl.int64)
    start = 0
    while start < end:
        depth, z = _load_law(row_ptr, vocab_stride, start, end, inside, top, inverse_temperature, BLOCK)
        mass += tl.where(depth <= deepest[:, None], _mass_units(z), 0)
        start += BLOCK
    return tl.sum(mass, axis=1)


@triton.jit
def _search(
    row_ptr, vocab_stride, end, inside, top, wanted, inverse_temperature,
    OF_MASS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Smallest depth D such that the tokens no deeper than D are at least `wanted`, in number or in mass."""
    found = tl.zeros([ROWS], dtype=tl.uint32)
    for step in range(_PASSES):
        shift = 30 - 2 * step
        pivot0 = found + (1 << shift) - 1
        pivot1 = pivot0 + (1 << shift)
        pivot2 = pivot1 + (1 << shift)
        sum0 = tl.zeros([ROWS, BLOCK], dtype=tl.int64 if OF_MASS else tl.int32)
        sum1 = sum0
        sum2 = sum0
        start = 0
        while start < end:
            depth, z = _load_law(row_ptr, vocab_stride, start, end, inside, top, inverse_temperature, BLOCK)
            amount = _mass_units(z) if OF_MASS else tl.full([ROWS, BLOCK], 1, dtype=tl.int32)
            sum0 += tl.where(depth <= pivot0[:, None], amount, 0)
            sum1 += tl.where(depth <= pivot1[:, None], amount, 0)
            sum2 += tl.where(depth <= pivot2[:, None], amount, 0)
            start += BLOCK
        short = (tl.sum(sum0, axis=1) < wanted).to(tl.uint32)
        short += (tl.sum(sum1, axis=1) < wanted).to(tl.uint32)
        short += (tl.sum(sum2, axis=1) < wanted).to(tl.uint32)
        found += short << shift
    return found


# Not in the list: what the alignment of loads depends on.
@triton.jit(do_not_specialize=["count", "rows", "top_k", "top_p_units"])
def threshold_kernel(
    logits_ptr,
    batch_stride,
    row_stride,
    vocab_stride,
    count,
    rows,
    vocab_size,
    top_k,
    top_p_units,
    log_min_p,
    top_ptr,
    cut_ptr,
    inverse_temperature,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest logit of a block of rows, and the lowest z that the filters leave; top_p in units of 2**-53."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row_ptr = logits_ptr + row // count * batch_stride + row % count * row_stride

    tops = tl.full([ROWS, BLOCK], float("-inf"), dtype=tl.float32)
    start = 0
    while start < vocab_size:
        g = load_logits(row_ptr, vocab_stride, start, vocab_size, inside, BLOCK)
        tops = tl.maximum(tops, tl.where(g != g, float("-inf"), g))
        start += BLOCK
    top = tl.max(tops, axis=1)

    deepest = tl.full([ROWS], 0x7F800000, dtype=tl.uint32)  # that of -inf: everything stays
    if HAS_TOP_K:
        deepest = _search(
            row_ptr, vocab_stride, vocab_size, inside, top, top_k, inverse_temperature,
            OF_MASS=False, ROWS=ROWS, BLOCK=BLOCK,
        )  # fmt: skip
    if HAS_TOP_P:
        mass = _mass_above(
            row_ptr, vocab_stride, vocab_size, inside, top, deepest, inverse_temperature, ROWS, BLOCK
        )
        share = top_p_units.to(tl.float64) * 1.1102230246251565e-16
        # float64 may round a mass beyond 2**53 up.
        wanted = tl.minimum(tl.ceil(share * mass.to(tl.float64)).to(tl.int64), mass)
        deepest = _search(
            row_ptr, vocab_stride, vocab_size, inside, top, wanted, inverse_temperature,
            OF_MASS=True, ROWS=ROWS, BLOCK=BLOCK,
        )  # fmt: skip
    cut = tl.maximum(-deepest.to(tl.float32, bitcast=True), log_min_p)
    tl.store(top_ptr + row, top, mask=inside)
    tl.store(cut_ptr + row, cut, mask=inside)
