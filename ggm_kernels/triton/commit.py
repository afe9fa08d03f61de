"""`commit` in Triton: one program takes a row, and finds bit by bit where the accepted candidates end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ggm_kernels.arguments.commit import Choice
from ggm_kernels.randomness import Stream
from ggm_kernels.triton.philox import words_at

_MAX_BLOCK = 4096  # positions at once
_STREAM = int(Stream.COMMIT)
_TOKEN_BLOCK = tl.constexpr(0)  # vocabulary blocks of a token stream
_ACCEPTANCE_BLOCK = tl.constexpr(1)
_NO_CANDIDATE = tl.constexpr(0xFFFFFFFF)  # a key that no score has, the last of all
_OF_MINUS_INFINITY = tl.constexpr(0xFF800000)
_NO_COUNT = 2**63 - 1


def commit(tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice) -> None:
    """`commit` on checked arguments."""
    batch, length = tokens.shape
    if tokens.numel() == 0:
        return
    block = min(_MAX_BLOCK, max(16, triton.next_power_of_2(length)))
    with torch.cuda.device_of(tokens):
        _commit_kernel[(batch,)](
            tokens, *tokens.stride(), proposal, *proposal.stride(), score, *score.stride(),
            *_matrix(choice.eligible), *_matrix(choice.accepted),
            *_per_row(_NO_COUNT if choice.count is None else choice.count),
            *_per_row(float("-inf") if choice.threshold is None else choice.threshold),
            *_per_row(choice.budget), choice.noise_table, choice.mask_id, choice.vocab_size,
            choice.sample_ids, length, length.bit_length(), choice.seed, choice.step,
            IS_WHOLE=length <= block, HAS_LIMIT=choice.count is not None or choice.budget is not None,
            COUNT_IS_POINTER=isinstance(choice.count, torch.Tensor),
            THRESHOLD_IS_POINTER=isinstance(choice.threshold, torch.Tensor),
            BUDGET_IS_POINTER=isinstance(choice.budget, torch.Tensor),
            STEP_IS_POINTER=isinstance(choice.step, torch.Tensor), NOISES_REST=choice.noises_rest,
            STREAM=_STREAM, BLOCK=block, num_warps=warps_of(block),
        )  # fmt: skip


def _matrix(mask: torch.Tensor | None) -> tuple:
    return (None, 0, 0) if mask is None else (mask, *mask.stride())


def _per_row(limit) -> tuple:
    """A limit, and the distance between those of two rows."""
    return limit, limit.stride(0) if isinstance(limit, torch.Tensor) and limit.dim() == 1 else 0


def warps_of(block: int) -> int:
    """Warps of a program that has so many positions at once."""
    return min(8, max(1, block // 256))  # more of them leave a thread too few registers


@triton.jit
def _keys(score, is_candidate):
    """Keys, int64, that ascend where scores descend; -0 is 0, and what is no candidate is last."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.uint32, bitcast=True).to(tl.int64)
    key = tl.where(bits >= 0x80000000, bits, 0x7FFFFFFF - bits)
    return tl.where(is_candidate, key, _NO_CANDIDATE)


@triton.jit
def _key_score(key):
    bits = tl.where(key >= 0x80000000, key, 0x7FFFFFFF - key)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _cost_units(score, scale, largest):
    """Costs as integers, none above `largest` units; infinite ones count nothing here."""
    is_finite = tl.abs(score) < float("inf")
    return tl.minimum(-tl.where(is_finite, score, 0.0).to(tl.float64) * scale, largest).to(tl.int64)


@triton.jit
def _counted_bits(gain, cost, budget, length):
    """Bits of the largest magnitude that the unit must have room for: nothing stands behind larger costs."""
    paid = gain.to(tl.float32, bitcast=True).to(tl.float64) * length.to(tl.float64)
    reach = paid + tl.where(budget > 0.0, budget, 0.0).to(tl.float64)
    of_reach = reach.to(tl.float32).to(tl.int32, bitcast=True) | 0x7FFFFF
    of_reach = tl.where(reach < 1.7014118346046923e38, of_reach, 0x7F7FFFFF)  # 2**127
    return tl.maximum(gain, tl.minimum(cost, of_reach))


@triton.jit
def _load_keys(score_ptr, score_stride, eligible_ptr, eligible_stride, position, length, threshold):
    inside = position < length
    score = tl.load(score_ptr + position * score_stride, mask=inside, other=float("nan")).to(tl.float32)
    is_candidate = score >= threshold  # never of NaN
    if eligible_ptr is not None:
        is_candidate &= tl.load(eligible_ptr + position * eligible_stride, mask=inside, other=0) != 0
    return _keys(score, is_candidate)


@triton.jit
def _noise(
    seed,
    step,
    sample_id,
    start,
    noise_table_ptr,
    mask_id,
    vocab_size,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Noise tokens of the block of positions from `start` on, int64."""
    if mask_id is not None:
        noise = tl.zeros((BLOCK,), tl.int64) + mask_id
    else:
        pair = start // 2 + tl.arange(0, BLOCK // 2)
        w0, w1, w2, w3 = words_at(seed, step, sample_id, pair, _TOKEN_BLOCK, STREAM)
        noise = tl.umulhi(tl.interleave(w1, w3), vocab_size.to(tl.uint32)).to(tl.int64)
    if noise_table_ptr is not None:
        quad = start // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = words_at(seed, step, sample_id, quad, _ACCEPTANCE_BLOCK, STREAM)
        accept = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        threshold = tl.load(noise_table_ptr + 2 * noise).to(tl.uint32, bitcast=True)
        alias = tl.load(noise_table_ptr + 2 * noise + 1).to(tl.int64)
        noise = tl.where(accept < threshold, noise, alias)
    return noise


@triton.jit(do_not_specialize=["count", "vocab_size", "length", "length_bits", "seed", "step", "mask_id"])
def _commit_kernel(
    tokens_ptr,
    tokens_row_stride,
    tokens_stride,
    proposal_ptr,
    proposal_row_stride,
    proposal_stride,
    score_ptr,
    score_row_stride,
    score_stride,
    eligible_ptr,
    eligible_row_stride,
    eligible_stride,
    accepted_ptr,
    accepted_row_stride,
    accepted_stride,
    count,
    count_stride,
    threshold,
    threshold_stride,
    budget,
    budget_stride,
    noise_table_ptr,
    mask_id,
    vocab_size,
    sample_ids_ptr,
    length,
    length_bits,
    seed,
    step,
    IS_WHOLE: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    COUNT_IS_POINTER: tl.constexpr,
    THRESHOLD_IS_POINTER: tl.constexpr,
    BUDGET_IS_POINTER: tl.constexpr,
    STEP_IS_POINTER: tl.constexpr,
    NOISES_REST: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    score_ptr += row * score_row_stride
    if eligible_ptr is not None:
        eligible_ptr += row * eligible_row_stride
    most = tl.load(count + row * count_stride) if COUNT_IS_POINTER else count
    least = tl.load(threshold + row * threshold_stride) if THRESHOLD_IS_POINTER else threshold
    lanes = tl.arange(0, BLOCK).to(tl.int64)

    # The largest key before which the order is still open; keys below it are accepted.
    end = tl.zeros((), tl.int64) + _NO_CANDIDATE
    equals = tl.zeros((), tl.int64)
    if HAS_LIMIT:
        most_units = tl.zeros((), tl.int64)
        scale, most_of_one = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        if budget is not None:
            limit = (
                tl.load(budget + row * budget_stride)
                if BUDGET_IS_POINTER
                else tl.zeros((), tl.float32) + budget
            )
            gain, cost = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
            start = tl.zeros((), tl.int64)
            while start < length:
                keys = _load_keys(
                    score_ptr, score_stride, eligible_ptr, eligible_stride, start + lanes, length, least
                )
                score = _key_score(keys)
                counts = (keys != _NO_CANDIDATE) & (tl.abs(score) < float("inf"))
                gains = tl.where(counts & (score > 0.0), score, 0.0).to(tl.int32, bitcast=True)
                costs = tl.where(counts & (score < 0.0), -score, 0.0).to(tl.int32, bitcast=True)
                gain, cost = tl.maximum(gain, tl.max(gains, 0)), tl.maximum(cost, tl.max(costs, 0))
                start += BLOCK
            largest = _counted_bits(gain, cost, limit, length)
            exponent = tl.maximum(largest >> 23, 1).to(tl.int64) - 127
            most_of_one = (62 - tl.cast(length_bits, tl.int64) + 1023 << 52).to(tl.float64, bitcast=True)
            scale = ((61 - exponent - length_bits + 1023) << 52).to(tl.float64, bitcast=True)
            is_valid = limit >= 0.0
            scaled = tl.where(is_valid, limit, 0.0).to(tl.float64) * scale
            most_units = tl.minimum(scaled, 4611686018427387904.0).to(tl.int64)
            most_units = tl.where(is_valid, most_units, -1)
        end = tl.zeros((), tl.int64)
        count_before = tl.zeros((), tl.int64)
        units_before = tl.zeros((), tl.int64)
        if IS_WHOLE:  # one block: its keys and costs stay in registers
            row_keys = _load_keys(
                score_ptr, score_stride, eligible_ptr, eligible_stride, lanes, length, least
            )
            row_units = _cost_units(_key_score(row_keys), scale, most_of_one)
        for bit in range(32):
            trial = end + (tl.full((), 1, tl.int64) << (31 - bit))
            units = tl.zeros((), tl.int64)
            if IS_WHOLE:
                is_before = row_keys < trial
                counts = tl.sum(is_before.to(tl.int64), 0)
                if budget is not None:
                    units = tl.sum(tl.where(is_before, row_units, 0), 0)
            else:
                counts = tl.zeros((), tl.int64)
                start = tl.zeros((), tl.int64)
                while start < length:
                    keys = _load_keys(
                        score_ptr, score_stride, eligible_ptr, eligible_stride, start + lanes, length, least
                    )
                    is_before = keys < trial
                    counts += tl.sum(is_before.to(tl.int64), 0)
                    if budget is not None:
                        costs = _cost_units(_key_score(keys), scale, most_of_one)
                        units += tl.sum(tl.where(is_before, costs, 0), 0)
                    start += BLOCK
            is_open = counts < most
            if budget is not None:
                # Nothing is open behind a score of -inf, the last key, whose cost no finite budget covers.
                is_covered = (trial <= _OF_MINUS_INFINITY) | (limit == float("inf"))
                is_open = is_open & (units <= most_units) & is_covered
            end = tl.where(is_open, trial, end)
            count_before = tl.where(is_open, counts, count_before)
            units_before = tl.where(is_open, units, units_before)
        equals = most - count_before
        if budget is not None:
            score_of_end = _key_score(end)
            of_end = _cost_units(score_of_end, scale, most_of_one)
            by_budget = (most_units - units_before) // tl.maximum(of_end, 1) + 1
            by_budget = tl.where(of_end > 0, by_budget, equals)
            by_budget = tl.where(score_of_end == float("-inf"), 1, by_budget)
            by_budget = tl.where(limit == float("inf"), equals, by_budget)
            equals = tl.where(limit >= 0.0, tl.minimum(equals, by_budget), 0)

    step_value = tl.load(step) if STEP_IS_POINTER else step
    sample_id = row if sample_ids_ptr is None else tl.load(sample_ids_ptr + row)
    earlier = tl.zeros((), tl.int64)
    start = tl.zeros((), tl.int64)
    while start < length:
        position = start + lanes
        inside = position < length
        keys = _load_keys(score_ptr, score_stride, eligible_ptr, eligible_stride, position, length, least)
        is_equal = (keys == end) & (keys != _NO_CANDIDATE)
        rank = earlier + tl.cumsum(is_equal.to(tl.int64), 0) - is_equal.to(tl.int64)
        earlier += tl.sum(is_equal.to(tl.int64), 0)
        is_accepted = (keys < end) | (is_equal & (rank < equals))
        proposal = tl.load(
            proposal_ptr + row * proposal_row_stride + position * proposal_stride, mask=is_accepted, other=0
        ).to(tl.int64)
        writes = is_accepted
        if NOISES_REST:
            is_rest = inside & (is_accepted == 0)
            if eligible_ptr is not None:
                is_rest &= tl.load(eligible_ptr + position * eligible_stride, mask=inside, other=0) != 0
            noise = _noise(
                seed, step_value, sample_id, start, noise_table_ptr, mask_id, vocab_size, STREAM, BLOCK
            )
            proposal = tl.where(is_accepted, proposal, noise)
            writes = writes | is_rest
        token_at = tokens_ptr + row * tokens_row_stride + position * tokens_stride
        tl.store(token_at, proposal.to(tokens_ptr.dtype.element_ty), mask=writes)
        if accepted_ptr is not None:
            at = accepted_ptr + row * accepted_row_stride + position * accepted_stride
            tl.store(at, is_accepted, mask=inside)
        start += BLOCK
