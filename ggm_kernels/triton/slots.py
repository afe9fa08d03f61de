"""What the slots of a row say together: largest logit and its slot, the group that wins, sums."""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.randomness import Stream
from ggm_kernels.triton.group_sums import LAW, MOMENT, TOP
from ggm_kernels.triton.race import log_exponential, many_words, tempered

_GROUP = tl.constexpr(int(Stream.GROUP))
_NO_SLOT = tl.constexpr(0x7FFFFFFF)


@triton.jit
def load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK: tl.constexpr):
    """Largest logits of BLOCK slots from `first` on, -inf for NaN; and which slots hold a NaN."""
    slot = first + tl.arange(0, BLOCK)
    mask = live[:, None] & (slot < slots)[None, :]
    at = sums_ptr + row_at[:, None] + slot[None, :]
    tops = tl.load(at + TOP * field_stride, mask=mask, other=float("-inf"))
    return tl.where(tops == tops, tops, float("-inf")), tops != tops, at, mask


@triton.jit
def row_tops(sums_ptr, field_stride, row_at, slots, live, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Largest logit of rows, and whether they hold a NaN."""
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    has_nan = tl.zeros([ROWS], dtype=tl.int32)
    first = 0
    while first < slots:
        tops, is_nan, _, _ = load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK)
        top = tl.maximum(top, tl.max(tops, axis=1))
        has_nan = tl.maximum(has_nan, tl.max(is_nan.to(tl.int32), axis=1))
        first += BLOCK
    return top, has_nan > 0


@triton.jit
def load_groups(
    sums_ptr, field_stride, row_at, first, slots, live, inverse,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Largest logit [ROWS, GROUPS] of groups from `first` on, and mass relative to it; of PARTS slots."""
    slot = (first + tl.arange(0, GROUPS)) * PARTS
    at = sums_ptr + row_at[:, None] + slot[None, :]
    tops = tl.full([ROWS, GROUPS], float("-inf"), dtype=tl.float32)
    for part in range(PARTS):
        mask = live[:, None] & (slot + part < slots)[None, :]
        of_part = tl.load(at + part + TOP * field_stride, mask=mask, other=float("-inf"))
        tops = tl.maximum(tops, tl.where(of_part == of_part, of_part, float("-inf")))
    masses = tl.zeros([ROWS, GROUPS], dtype=tl.float32)
    for part in range(PARTS):
        mask = live[:, None] & (slot + part < slots)[None, :]
        of_part = tl.load(at + part + TOP * field_stride, mask=mask, other=float("-inf"))
        fall = tempered(of_part, tops, inverse[:, None])
        masses += tl.load(at + part + LAW * field_stride, mask=mask, other=0.0) * tl.exp(fall)
    return tops, masses


@triton.jit
def winning_group(
    sums_ptr, field_stride, row_at, slots, live, top, inverse, is_greedy, seed, step, sample_id, position,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The group with the largest log S - log E, or of the largest logit: the first of equals."""
    best = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    winner = tl.zeros([ROWS], dtype=tl.int32)
    first = 0
    while first * PARTS < slots:
        tops, masses = load_groups(
            sums_ptr, field_stride, row_at, first, slots, live, inverse, ROWS, GROUPS, PARTS
        )
        start = tl.zeros([ROWS], dtype=tl.int32) + first
        word = many_words(seed, step, sample_id, position, start, GROUPS, _GROUP)
        score = tempered(tops, top[:, None], inverse[:, None]) + tl.log(masses) - log_exponential(word)
        of_top = tl.where(tops == top[:, None], 0.0, float("-inf"))
        score = tl.where(is_greedy[:, None], of_top, score)
        block_best, column = tl.max(score, axis=1, return_indices=True)
        wins = block_best > best
        best = tl.where(wins, block_best, best)
        winner = tl.where(wins, first + column, winner)
        first += GROUPS
    return winner


@triton.jit
def row_sum(
    sums_ptr, field_stride, row_at, slots, live, top, inverse,
    FIELD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A sum of the row relative to its largest logit, float64: many light slots count beside a heavy one."""
    total = tl.zeros([ROWS], dtype=tl.float64)
    first = 0
    while first < slots:
        tops, _, at, mask = load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK)
        share = tl.exp(tempered(tops, top[:, None], inverse[:, None]))
        values = tl.load(at + FIELD * field_stride, mask=mask, other=0.0)
        total += tl.sum((values * share).to(tl.float64), axis=1)
        first += BLOCK
    return total


@triton.jit
def entropies(
    sums_ptr, field_stride, row_at, slots, live, top, inverse,
    MASS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entropy of the tempered law before the filters, in nats."""
    mass = tl.zeros([ROWS], dtype=tl.float64)
    moment = tl.zeros([ROWS], dtype=tl.float64)
    first = 0
    while first < slots:
        tops, _, at, mask = load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK)
        fall = tempered(tops, top[:, None], inverse[:, None])
        share = tl.exp(fall)
        masses = tl.load(at + MASS * field_stride, mask=mask, other=0.0)
        moments = tl.load(at + MOMENT * field_stride, mask=mask, other=0.0)
        moments += tl.where(share > 0.0, fall, 0.0) * masses
        mass += tl.sum((share * masses).to(tl.float64), axis=1)
        moment += tl.sum((share * moments).to(tl.float64), axis=1)
        first += BLOCK
    return tl.maximum(tl.log(mass) - moment / mass, 0.0).to(tl.float32)


@triton.jit
def leading_slot(sums_ptr, field_stride, row_at, slots, live, top, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The first slot that has the largest logit, and the largest logit of all others."""
    leader = tl.full([ROWS], _NO_SLOT, dtype=tl.int32)
    first = 0
    while first < slots:
        tops, _, _, mask = load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK)
        slot = (first + tl.arange(0, BLOCK))[None, :]
        leader = tl.minimum(leader, tl.min(tl.where(mask & (tops == top[:, None]), slot, _NO_SLOT), axis=1))
        first += BLOCK
    second = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    first = 0
    while first < slots:
        tops, _, _, _ = load_tops(sums_ptr, field_stride, row_at, first, slots, live, BLOCK)
        slot = (first + tl.arange(0, BLOCK))[None, :]
        second = tl.maximum(second, tl.max(tl.where(slot == leader[:, None], float("-inf"), tops), axis=1))
        first += BLOCK
    return leader, second
