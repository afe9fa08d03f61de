"""A draw from softmax(z) as a race, inside Triton kernels: the mathematics of ``csrc/numerics/race.h``.

A kernel races a block of rows over a part of the vocabulary, tile by tile, with scores relative to the
largest logit so far. What is known of a row after a part, its partials, is combined by `settle_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.randomness import Stream
from ggm_kernels.triton.philox import words_at

_RACE = tl.constexpr(int(Stream.RACE))
_KEEP = tl.constexpr(int(Stream.KEEP))

# Partials: float32 [FIELDS, rows, slots]. Token ids are exact in it. A NaN among logits makes the top NaN.
FIELDS = 5
_TOP = tl.constexpr(0)
_BEST = tl.constexpr(1)
_WINNER = tl.constexpr(2)
_RAW_SUM = tl.constexpr(3)
_LAW_SUM = tl.constexpr(4)


@triton.jit
def tempered(g, top, inverse_temperature):
    """Logit relative to the largest, over the temperature: at most 0; 0 at the largest, be it infinite."""
    return tl.where(g == top, 0.0, (g - top) * inverse_temperature)


@triton.jit
def open_uniform(word):
    """(word + 1/2) / 2**32 in float32: never 0, never 1, and near 0 as fine as 32 bits allow."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)


@triton.jit
def log1p_minus(u):
    """log(1 - u) for u in [0, 1], with full relative precision near 0."""
    rest = 1.0 - u
    moved = 1.0 - rest  # what 1 - u took away, after rounding
    return tl.where(moved == 0.0, -u, tl.log(rest) * (u / tl.where(moved == 0.0, 1.0, moved)))


@triton.jit
def log_exponential(word):
    """Logarithm of the exponential E = -log(1 - u)."""
    return tl.log(-log1p_minus(open_uniform(word)))


@triton.jit
def may_win(z, word, best):
    """Never false for a token whose score beats `best`, and seldom true for others, without a logarithm.

    E is at least u, u at least (word >> 1) / 2**31, and the bits of a float, read as an integer, are a chord
    below its logarithm.
    """
    bits = (word >> 1).to(tl.int32).to(tl.float32).to(tl.int32, bitcast=True)
    log2_u = bits.to(tl.float32) - 1325400064.0  # 2**23 (127 + 31)
    return log2_u < (z - best) * 12102203.0 + 1024.0  # 2**23 log2(e), and a margin for rounding


@triton.jit
def sigmoid(f):
    """1 / (1 + exp(-f))."""
    return 1.0 / (1.0 + tl.exp(-f))


@triton.jit
def log_odds(g, rate, log_noise_prob):
    """Log-odds that a token of logit g is signal: certain where it cannot be noise, whatever g but NaN."""
    f = g + (log1p_minus(rate) - tl.log(rate)) - log_noise_prob
    f = tl.where((rate >= 1.0) | (g == float("-inf")), float("-inf"), f)
    f = tl.where((rate <= 0.0) | (log_noise_prob == float("-inf")), float("inf"), f)
    return tl.where(g == g, f, g)


@triton.jit
def keeps_token(f, word):
    """True with probability sigmoid(f); NaN keeps.

    Compares the rarer outcome with a uniform near 0, where float32 has 32 random bits to give.
    """
    keeps = open_uniform(word ^ 0xFFFFFFFF) < sigmoid(f)
    replaces = open_uniform(word) < sigmoid(-f)
    return tl.where(f < 0.0, keeps, replaces == 0)


@triton.jit
def row_coordinates(
    row, inside, count, positions_ptr, position_batch_stride, position_stride, sample_ids_ptr
):
    """Sequence, position and sample id of rows, int64."""
    sequence = row // count
    at = sequence * position_batch_stride + row % count * position_stride
    position = tl.load(positions_ptr + at, mask=inside, other=-1).to(tl.int64)
    if sample_ids_ptr is None:
        sample_id = sequence
    else:
        sample_id = tl.load(sample_ids_ptr + sequence, mask=inside, other=0)
    return sequence, position, sample_id


@triton.jit
def present_tokens(
    tokens_ptr, token_batch_stride, token_stride, length, vocab_size, sequence, position, inside
):
    """Address and value of the present token of rows, and whether both position and token are legal."""
    legal = inside & (position >= 0) & (position < length)
    at = tokens_ptr + sequence * token_batch_stride + position * token_stride
    token = tl.load(at, mask=legal, other=-1).to(tl.int64)
    return at, token, legal & (token >= 0) & (token < vocab_size)


@triton.jit
def _race_words(seed, step, sample_id, position, start, BLOCK: tl.constexpr):
    """Words of tokens start .. start + BLOCK - 1 at rows: uint32 [ROWS, BLOCK]."""
    quad = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = words_at(seed, step, sample_id[:, None], position[:, None], quad[None, :], _RACE)
    # One reshape of all four: a compiler changes layouts at every one.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [w0.shape[0], BLOCK])


@triton.jit
def race_tile(
    g,
    start,
    top,
    best,
    winner,
    has_nan,
    raw_sum,
    law_sum,
    cut,
    seed,
    step,
    sample_id,
    position,
    inverse_temperature,
    GREEDY: tl.constexpr,
    FILTERED: tl.constexpr,
    WANTS_RAW: tl.constexpr,
    WANTS_LAW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Let tokens start .. start + BLOCK - 1, of logits g [ROWS, BLOCK], join the race; return the new state.

    State of a row: the largest logit so far, the best score relative to it and its token. Of a row and
    column: a NaN seen, and sums of exponentials relative to the largest logit. With FILTERED, `top` is the
    largest of the whole row from the start, and only z >= cut may be drawn.
    """
    is_nan = g != g
    has_nan = has_nan | is_nan
    g = tl.where(is_nan, float("-inf"), g)
    if not FILTERED:
        new_top = tl.maximum(top, tl.max(g, axis=1))
        best += tempered(top, new_top, inverse_temperature)
        if WANTS_RAW:
            raw_sum *= tl.exp(tempered(top, new_top, 1.0))[:, None]
        if WANTS_LAW:
            law_sum *= tl.exp(tempered(top, new_top, inverse_temperature))[:, None]
        top = new_top
    if WANTS_RAW:
        raw_sum += tl.exp(tempered(g, top[:, None], 1.0))
    z = tempered(g, top[:, None], inverse_temperature)
    if FILTERED:
        z = tl.where(z >= cut[:, None], z, float("-inf"))
    if WANTS_LAW:
        law_sum += tl.exp(z)
    if GREEDY:
        best, winner = _leader(z, start, best, winner)
    else:
        word = _race_words(seed, step, sample_id, position, start, BLOCK)
        # After a few tiles most hold no token that may win: no logarithms for them.
        may = may_win(z, word, best[:, None]).to(tl.int32)
        if tl.max(tl.max(may, axis=1), axis=0) > 0:
            best, winner = _leader(z - log_exponential(word), start, best, winner)
    return top, best, winner, has_nan, raw_sum, law_sum


@triton.jit
def _leader(score, start, best, winner):
    """Best score and its token, the first of equals."""
    tile_best, column = tl.max(score, axis=1, return_indices=True)
    wins = tile_best > best
    return tl.where(wins, tile_best, best), tl.where(wins, start + column, winner)


@triton.jit
def store_partials(
    partials_ptr,
    field_stride,
    at,
    inside,
    top,
    best,
    winner,
    has_nan,
    raw_sum,
    law_sum,
    WANTS_RAW: tl.constexpr,
    WANTS_LAW: tl.constexpr,
):
    """Write the state of rows after their part of the vocabulary to places `at` of every field."""
    top = tl.where(tl.max(has_nan.to(tl.int32), axis=1) > 0, float("nan"), top)
    tl.store(partials_ptr + _TOP * field_stride + at, top, mask=inside)
    tl.store(partials_ptr + _BEST * field_stride + at, best, mask=inside)
    tl.store(partials_ptr + _WINNER * field_stride + at, winner.to(tl.float32), mask=inside)
    if WANTS_RAW:
        tl.store(partials_ptr + _RAW_SUM * field_stride + at, tl.sum(raw_sum, axis=1), mask=inside)
    if WANTS_LAW:
        tl.store(partials_ptr + _LAW_SUM * field_stride + at, tl.sum(law_sum, axis=1), mask=inside)


@triton.jit(do_not_specialize=["length", "count", "vocab_size", "first_row", "rows", "slots", "seed", "step"])
def settle_kernel(
    tokens_ptr,
    token_batch_stride,
    token_stride,
    length,
    positions_ptr,
    position_batch_stride,
    position_stride,
    sample_ids_ptr,
    count,
    vocab_size,
    first_row,
    rows,
    seed,
    step,
    partials_ptr,
    slots,
    present_ptr,
    frozen_ptr,
    rate_ptr,
    rate_batch_stride,
    rate_stride,
    noise_log_probs_ptr,
    uniform_log_prob,
    log_sum_exp_ptr,
    log_prob_ptr,
    keep_prob_ptr,
    inverse_temperature,
    STEP_IS_POINTER: tl.constexpr,
    GREEDY: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Combine the partials of a block of rows, decide what changes, write tokens and by-products."""
    local = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = local < rows
    row = first_row + local
    step_value = tl.load(step) if STEP_IS_POINTER else step
    sequence, position, sample_id = row_coordinates(
        row, inside, count, positions_ptr, position_batch_stride, position_stride, sample_ids_ptr
    )
    token_at, token, legal = present_tokens(
        tokens_ptr, token_batch_stride, token_stride, length, vocab_size, sequence, position, inside
    )

    slot = tl.arange(0, SLOTS)
    mask = inside[:, None] & (slot < slots)[None, :]
    field_stride = rows.to(tl.int64) * slots
    at = partials_ptr + local[:, None] * slots + slot[None, :]
    tops = tl.load(at + _TOP * field_stride, mask=mask, other=float("-inf"))
    is_nan = tops != tops
    has_nan = tl.max(is_nan.to(tl.int32), axis=1) > 0
    tops = tl.where(is_nan, float("-inf"), tops)
    top = tl.max(tops, axis=1)
    bests = tl.load(at + _BEST * field_stride, mask=mask, other=float("-inf"))
    best, winning = tl.max(
        bests + tempered(tops, top[:, None], inverse_temperature), axis=1, return_indices=True
    )
    winners = tl.load(at + _WINNER * field_stride, mask=mask, other=0.0)
    winner = tl.sum(tl.where(slot[None, :] == winning[:, None], winners, 0.0), axis=1).to(tl.int64)

    changes = legal & (has_nan == 0) & (top > float("-inf"))
    thawed = inside
    if frozen_ptr is not None:
        thawed = tl.load(frozen_ptr + sequence * length + position, mask=legal, other=0) == 0
        changes &= thawed
    if NORMALIZE or log_sum_exp_ptr is not None:
        raw_sums = tl.load(at + _RAW_SUM * field_stride, mask=mask, other=0.0)
        raw_sum = tl.sum(raw_sums * tl.exp(tempered(tops, top[:, None], 1.0)), axis=1)
        log_sum_exp = tl.where(has_nan, float("nan"), top + tl.log(raw_sum))
        log_sum_exp = tl.where(thawed, log_sum_exp, float("nan"))
        if log_sum_exp_ptr is not None:
            tl.store(log_sum_exp_ptr + row, log_sum_exp, mask=inside)
    if rate_ptr is not None:
        rate_at = rate_ptr + sequence * rate_batch_stride + row % count * rate_stride
        rate = tl.load(rate_at, mask=inside, other=0.0).to(tl.float32)
        verdict = tl.load(present_ptr + local, mask=legal, other=float("nan"))
        if NORMALIZE:
            verdict -= log_sum_exp
        log_noise_prob = tl.zeros([ROWS], dtype=tl.float32) + uniform_log_prob
        if noise_log_probs_ptr is not None:
            log_noise_prob = tl.load(noise_log_probs_ptr + token, mask=legal, other=0.0)
        f = log_odds(tl.where(thawed, verdict, float("nan")), rate, log_noise_prob)
        word, _, _, _ = words_at(seed, step_value, sample_id, position, 0, _KEEP)
        changes &= keeps_token(f, word) == 0
        if keep_prob_ptr is not None:
            tl.store(keep_prob_ptr + row, sigmoid(f), mask=inside)
    if log_prob_ptr is not None:
        if GREEDY:
            log_prob = tl.zeros([ROWS], dtype=tl.float32)
        else:
            law_sums = tl.load(at + _LAW_SUM * field_stride, mask=mask, other=0.0)
            law_sum = tl.sum(law_sums * tl.exp(tempered(tops, top[:, None], inverse_temperature)), axis=1)
            w0, w1, w2, w3 = words_at(
                seed, step_value, sample_id, position, (winner // 4).to(tl.uint32), _RACE
            )
            low = tl.where(winner % 2 == 0, w0, w1)
            high = tl.where(winner % 2 == 0, w2, w3)
            z = best + log_exponential(tl.where(winner % 4 < 2, low, high))
            log_prob = z - tl.log(law_sum)
        tl.store(log_prob_ptr + row, tl.where(changes, log_prob, float("nan")), mask=inside)
    tl.store(token_at, winner.to(tokens_ptr.dtype.element_ty), mask=changes)
