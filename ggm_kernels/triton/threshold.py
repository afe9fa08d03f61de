"""What top-k, top-p and min-p leave of rows of logits, in Triton: the lowest z that stays, without sorting.

z is the logit relative to the largest of its row, over the temperature. The bits of -z, the depth, grow as z
falls, so a search over them, two bits a pass, ends at the exact value. Equal logits share one fate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.triton.group_sums import real_inverse
from ggm_kernels.triton.race import tempered
from ggm_kernels.triton.rows import load_logits, row_places, row_value, shifts_of

_NO_DEPTH = tl.constexpr(0x7FFFFFFF)  # deeper than that of -inf
_ALL = tl.constexpr(0x7F800000)  # the depth of -inf: everything stays
_PASSES = tl.constexpr(16)  # of two bits each


@triton.jit
def _load_law(
    row_ptr, vocab_stride, start, end, live, softcap, shift, shifted, by, top, inverse_temperature,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Depth and z of tokens; the depth of what is no token is beyond all others."""
    g = load_logits(row_ptr, vocab_stride, start, end, live, softcap, shift, shifted, by, BLOCK)
    g = tl.where(g != g, float("-inf"), g)
    z = tempered(g, top[:, None], inverse_temperature[:, None])
    depth = z.to(tl.uint32, bitcast=True) & _NO_DEPTH
    is_token = (start + tl.arange(0, BLOCK) < end)[None, :]
    return tl.where(is_token, depth, _NO_DEPTH), z


@triton.jit
def _mass_units(z):
    """exp(z) in units of 2**-40: integers, whose sums do not depend on their order."""
    return (tl.exp(z) * 1099511627776.0).to(tl.int64)


@triton.jit
def _mass_above(
    row_ptr, vocab_stride, end, live, softcap, shift, shifted, by, top, inverse_temperature, deepest,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mass of the tokens that are no deeper than `deepest`."""
    mass = tl.zeros([ROWS, BLOCK], dtype=tl.int64)
    start = 0
    while start < end:
        depth, z = _load_law(
            row_ptr,
            vocab_stride,
            start,
            end,
            live,
            softcap,
            shift,
            shifted,
            by,
            top,
            inverse_temperature,
            BLOCK,
        )
        mass += tl.where(depth <= deepest[:, None], _mass_units(z), 0)
        start += BLOCK
    return tl.sum(mass, axis=1)


@triton.jit
def _search(
    row_ptr, vocab_stride, end, live, softcap, shift, shifted, by, top, inverse_temperature, wanted,
    OF_MASS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Smallest depth D such that the tokens no deeper than D are at least `wanted`, in number or in mass."""
    found = tl.zeros([ROWS], dtype=tl.uint32)
    for step in range(_PASSES):
        shift_bits = 30 - 2 * step
        pivot0 = found + (1 << shift_bits) - 1
        pivot1 = pivot0 + (1 << shift_bits)
        pivot2 = pivot1 + (1 << shift_bits)
        sum0 = tl.zeros([ROWS, BLOCK], dtype=tl.int64 if OF_MASS else tl.int32)
        sum1 = sum0
        sum2 = sum0
        start = 0
        while start < end:
            depth, z = _load_law(
                row_ptr, vocab_stride, start, end, live, softcap, shift, shifted, by, top,
                inverse_temperature,
                BLOCK,
            )  # fmt: skip
            amount = _mass_units(z) if OF_MASS else tl.full([ROWS, BLOCK], 1, dtype=tl.int32)
            sum0 += tl.where(depth <= pivot0[:, None], amount, 0)
            sum1 += tl.where(depth <= pivot1[:, None], amount, 0)
            sum2 += tl.where(depth <= pivot2[:, None], amount, 0)
            start += BLOCK
        short = (tl.sum(sum0, axis=1) < wanted).to(tl.uint32)
        short += (tl.sum(sum1, axis=1) < wanted).to(tl.uint32)
        short += (tl.sum(sum2, axis=1) < wanted).to(tl.uint32)
        found += short << shift_bits
    return found


# Not in the list: what the alignment of loads depends on.
@triton.jit(do_not_specialize=["length", "count", "first_row", "rows", "top_k", "top_p_units"])
def threshold_kernel(
    tokens_ptr,
    token_batch_stride,
    token_stride,
    length,
    positions_ptr,
    position_batch_stride,
    position_stride,
    frozen_ptr,
    count,
    vocab_size,
    first_row,
    rows,
    logits_ptr,
    batch_stride,
    row_stride,
    vocab_stride,
    temperature,
    temperature_batch_stride,
    temperature_row_stride,
    softcap,
    shift,
    shift_batch_stride,
    shift_row_stride,
    top_ptr,
    threshold_ptr,
    top_k,
    top_k_batch_stride,
    top_k_row_stride,
    top_p_units,
    top_p_batch_stride,
    top_p_row_stride,
    log_min_p,
    min_p_batch_stride,
    min_p_row_stride,
    TOP_P_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest logit of a block of rows, and the lowest z that the filters leave; top_p in units of 2**-53."""
    local = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, sequence, k, position, live = row_places(
        local,
        first_row,
        rows,
        count,
        length,
        positions_ptr,
        position_batch_stride,
        position_stride,
        frozen_ptr,
    )
    inverse = row_value(
        temperature, temperature_batch_stride, temperature_row_stride, sequence, k, tl.float32
    )
    # Greedy rows have no threshold.
    live = live & (inverse > 0.0)
    inverse = real_inverse(inverse)
    shifted, by = shifts_of(
        tokens_ptr, token_batch_stride, token_stride, sequence, position, k,
        shift, shift_batch_stride, shift_row_stride,
    )  # fmt: skip
    row_ptr = logits_ptr + local // count * batch_stride + local % count * row_stride
    end = tl.where(tl.max(live.to(tl.int32), axis=0) > 0, vocab_size, 0)

    tops = tl.full([ROWS, BLOCK], float("-inf"), dtype=tl.float32)
    start = 0
    while start < end:
        g = load_logits(row_ptr, vocab_stride, start, end, live, softcap, shift, shifted, by, BLOCK)
        tops = tl.maximum(tops, tl.where(g != g, float("-inf"), g))
        start += BLOCK
    top = tl.max(tops, axis=1)

    deepest = tl.full([ROWS], _ALL, dtype=tl.uint32)
    largest = deepest
    if top_k is not None:
        wanted_count = row_value(top_k, top_k_batch_stride, top_k_row_stride, sequence, k, tl.int64)
        wanted_count = tl.minimum(wanted_count, vocab_size)
        largest = _search(
            row_ptr, vocab_stride, end, live, softcap, shift, shifted, by, top, inverse, wanted_count,
            OF_MASS=False, ROWS=ROWS, BLOCK=BLOCK,
        )  # fmt: skip
        largest = tl.minimum(largest, _ALL)
    if top_p_units is not None:
        among = deepest if TOP_P_FIRST else largest
        mass = _mass_above(
            row_ptr, vocab_stride, end, live, softcap, shift, shifted, by, top, inverse, among, ROWS, BLOCK
        )
        units = row_value(top_p_units, top_p_batch_stride, top_p_row_stride, sequence, k, tl.int64)
        share = units.to(tl.float64) * 1.1102230246251565e-16
        # float64 may round a mass beyond 2**53 up.
        wanted = tl.minimum(tl.ceil(share * mass.to(tl.float64)).to(tl.int64), mass)
        nucleus = _search(
            row_ptr, vocab_stride, end, live, softcap, shift, shifted, by, top, inverse,
            tl.maximum(wanted, 1),
            OF_MASS=True, ROWS=ROWS, BLOCK=BLOCK,
        )  # fmt: skip
        deepest = tl.where(share < 1.0, tl.minimum(nucleus, _ALL), deepest)
    threshold = -tl.minimum(deepest, largest).to(tl.float32, bitcast=True)
    if log_min_p is not None:
        threshold = tl.maximum(
            threshold, row_value(log_min_p, min_p_batch_stride, min_p_row_stride, sequence, k, tl.float32)
        )
    tl.store(top_ptr + local, top, mask=local < rows)
    tl.store(threshold_ptr + local, threshold, mask=local < rows)
