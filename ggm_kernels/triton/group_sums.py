"""Sums over the tokens of a slot, from which groups race: one exponential a token, no word and no logarithm.

A slot is a group of RACE_GROUP tokens, or the part of one that a program takes. Its sums are float32,
relative to its own largest logit, in places [field, row, slot]; `settle_kernel` combines them. Their
order depends on nothing but the tokens of a group: the shape of a tile is that of the vocabulary,
whatever the number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.triton.race import tempered
from ggm_kernels.triton.rows import load_logits, row_places, row_value, shifts_of

FIELDS = 5
TOP = tl.constexpr(0)  # largest logit; NaN where a logit is
LAW = tl.constexpr(1)  # of exp(z), z the tempered logit: of what the filters leave
RAW = tl.constexpr(2)  # of exp(logit)
TEMPERED = tl.constexpr(3)  # of exp(z), with what the filters leave out
MOMENT = tl.constexpr(4)  # of z exp(z), likewise

_LARGEST = tl.constexpr(3.4028234663852886e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _slope(inverse_temperature):
    """Nats of logits to bits of z; a finite float."""
    return tl.minimum(inverse_temperature * _LOG2_E, _LARGEST)


@triton.jit
def _bits(g, top, slope):
    """Z in bits, at most 0; NaN for NaN. 0 where both are infinite: the top stands as the largest float."""
    return tl.minimum((g - top) * slope, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def store_sums(
    g, sums_ptr, field_stride, at, live, inverse_temperature, row_top, threshold,
    FILTERED: tl.constexpr, WANTS_RAW: tl.constexpr, WANTS_ENTROPY: tl.constexpr,
):  # fmt: skip
    """Write the sums of logits g [ROWS, BLOCK] to places `at` of every field that is wanted.

    With FILTERED only what is at least `threshold`, tempered and relative to `row_top`, counts in the law.
    """
    top = tl.max(g, axis=1)
    finite_top = tl.maximum(tl.minimum(top, _LARGEST), -_LARGEST)[:, None]
    bits = _bits(g, finite_top, _slope(inverse_temperature)[:, None])
    share = tl.exp2(bits)
    mass = tl.sum(share, axis=1)
    law = mass
    if FILTERED:
        stays = tempered(g, row_top[:, None], inverse_temperature[:, None]) >= threshold[:, None]
        law = tl.sum(tl.where(stays, share, 0.0), axis=1)
    # A NaN among the logits shows in the sum of all.
    tl.store(sums_ptr + TOP * field_stride + at, tl.where(mass == mass, top, float("nan")), mask=live)
    tl.store(sums_ptr + LAW * field_stride + at, law, mask=live)
    if WANTS_RAW:
        raw = tl.sum(tl.exp2(_bits(g, finite_top, _LOG2_E)), axis=1)
        tl.store(sums_ptr + RAW * field_stride + at, raw, mask=live)
    if WANTS_ENTROPY:
        moment = tl.sum(tl.where(share > 0.0, bits, 0.0) * share, axis=1) * _LN_2
        tl.store(sums_ptr + MOMENT * field_stride + at, moment, mask=live)
        if FILTERED:
            tl.store(sums_ptr + TEMPERED * field_stride + at, mass, mask=live)


# Not in the list: what the alignment of loads depends on.
@triton.jit(do_not_specialize=["length", "count", "vocab_size", "first_row", "rows", "slots"])
def sums_kernel(
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
    sums_ptr,
    slots,
    WANTS_RAW: tl.constexpr,
    WANTS_ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of one group of a block of rows, read once. BLOCK is a group, or holds the whole vocabulary."""
    local = (tl.program_id(0) // slots).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(0) % slots
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
    shifted, by = shifts_of(
        tokens_ptr, token_batch_stride, token_stride, sequence, position, k,
        shift, shift_batch_stride, shift_row_stride,
    )  # fmt: skip
    # The first row of the logits is that of first_row.
    row_ptr = logits_ptr + local // count * batch_stride + local % count * row_stride
    g = load_logits(row_ptr, vocab_stride, slot * BLOCK, vocab_size, live, softcap, shift, shifted, by, BLOCK)
    FILTERED: tl.constexpr = threshold_ptr is not None
    row_top, threshold = inverse, inverse
    if FILTERED:
        row_top = tl.load(top_ptr + local, mask=live, other=0.0)
        threshold = tl.load(threshold_ptr + local, mask=live, other=0.0)
    store_sums(
        g, sums_ptr, rows.to(tl.int64) * slots, local * slots + slot, live, real_inverse(inverse), row_top,
        threshold,
        FILTERED, WANTS_RAW, WANTS_ENTROPY,
    )  # fmt: skip


@triton.jit
def real_inverse(inverse_temperature):
    """Inverse temperature; any will do where 0 stands for that of temperature 0."""
    return tl.where(inverse_temperature == 0.0, 1.0, inverse_temperature)
