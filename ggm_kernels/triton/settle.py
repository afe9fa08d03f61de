"""What becomes of a row, from the sums of its slots: groups race, the tokens of the group that won race.

The logits are read once more for the RACE_GROUP tokens of that group alone, and for the slot of the
largest logit where margin or argmax are asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.randomness import RACE_GROUP, Stream
from ggm_kernels.triton.group_sums import LAW, RAW, TEMPERED, real_inverse
from ggm_kernels.triton.philox import words_at
from ggm_kernels.triton.race import (
    keeps_token,
    log_exponential,
    log_mixture,
    log_odds,
    many_words,
    sigmoid,
    takes_law,
    tempered,
)
from ggm_kernels.triton.rows import (
    load_own_logits,
    logit_of,
    present_tokens,
    row_places,
    row_value,
    shifts_of,
)
from ggm_kernels.triton.slots import entropies, leading_slot, row_sum, row_tops, winning_group

_RACE = tl.constexpr(int(Stream.RACE))
_KEEP = tl.constexpr(int(Stream.KEEP))
_RACE_GROUP = tl.constexpr(RACE_GROUP)


@triton.jit
def _margin_and_argmax(g, start, top, second):
    """Largest minus second largest logit, and the first token of the largest, from the leading slot's g."""
    leads = g == top[:, None]
    column = tl.arange(0, g.shape[1])[None, :]
    first = tl.min(tl.where(leads, column, g.shape[1]), axis=1)
    others = tl.where(column == first[:, None], float("-inf"), g)
    second = tl.maximum(second, tl.max(tl.where(others == others, others, float("-inf")), axis=1))
    return tl.where(second == top, 0.0, top - second), start + first


@triton.jit
def _winning_token(
    g, start, row_top, threshold, inverse, is_greedy, seed, step, sample_id, position,
    FILTERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The winner of the race of one group, logits g [ROWS, BLOCK], and its logit; the first of equals."""
    g = tl.where(g == g, g, float("-inf"))  # of a row that changes nothing
    top = tl.max(g, axis=1)[:, None]
    z = tempered(g, top, inverse[:, None])
    if FILTERED:
        stays = tempered(g, row_top[:, None], inverse[:, None]) >= threshold[:, None]
        z = tl.where(stays, z, float("-inf"))
    word = many_words(seed, step, sample_id, position, start, BLOCK, _RACE)
    score = tl.where(is_greedy[:, None], tl.where(g == top, 0.0, float("-inf")), z - log_exponential(word))
    _, winner = tl.max(score, axis=1, return_indices=True)
    is_winner = tl.arange(0, BLOCK)[None, :] == winner[:, None]
    return start + winner, tl.max(tl.where(is_winner, g, float("-inf")), axis=1)


@triton.jit
def _noise_token(column_word, accept_word, noise_table_ptr, vocab_size, live):
    """The token that the noise of a mixture draws."""
    column = tl.umulhi(column_word, tl.zeros_like(column_word) + vocab_size.to(tl.uint32)).to(tl.int64)
    if noise_table_ptr is not None:
        threshold = tl.load(noise_table_ptr + 2 * column, mask=live, other=0).to(tl.uint32, bitcast=True)
        alias = tl.load(noise_table_ptr + 2 * column + 1, mask=live, other=0).to(tl.int64)
        column = tl.where(accept_word < threshold, column, alias)
    return column


@triton.jit
def _log_pi(noise_log_probs_ptr, uniform_log_prob, token, token_bound, live):
    """Logarithm of the probability of tokens under the noise."""
    if noise_log_probs_ptr is None:
        return tl.zeros(token.shape, dtype=tl.float32) + uniform_log_prob
    else:
        is_legal = live & (token >= 0) & (token < token_bound)
        return tl.load(noise_log_probs_ptr + token, mask=is_legal, other=float("-inf"))


@triton.jit(
    do_not_specialize=[
        "length", "count", "vocab_size", "first_row", "rows", "seed", "step", "slots", "token_bound",
        "noise_mask",
    ]
)  # fmt: skip
def settle_kernel(
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
    sample_ids_ptr,
    seed,
    seed_stride,
    step,
    step_stride,
    rate,
    rate_batch_stride,
    rate_row_stride,
    mixture,
    mixture_batch_stride,
    mixture_row_stride,
    noise_log_probs_ptr,
    uniform_log_prob,
    token_bound,
    noise_table_ptr,
    noise_mask,
    log_sum_exp_ptr,
    log_prob_ptr,
    keep_prob_ptr,
    raw_log_prob_ptr,
    entropy_ptr,
    margin_ptr,
    argmax_ptr,
    NORMALIZE: tl.constexpr,
    RAW_IS_LAW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOT: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Settle a block of rows: decide what changes, write tokens and by-products.

    BLOCK holds a group, or the vocabulary of less; SLOT the tokens of a slot, of which PARTS make a group.
    """
    NAN: tl.constexpr = float("nan")
    SLOTS: tl.constexpr = GROUPS * PARTS
    FILTERED: tl.constexpr = threshold_ptr is not None
    local = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = local < rows
    row, sequence, k, position, live = row_places(
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
    is_greedy = inverse == 0.0
    inverse = real_inverse(inverse)
    seeds = row_value(seed, seed_stride, 0, sequence, k, tl.int64)
    steps = row_value(step, step_stride, 0, sequence, k, tl.int64)
    sample_id = sequence
    if sample_ids_ptr is not None:
        sample_id = tl.load(sample_ids_ptr + sequence)
    shifted, by = shifts_of(
        tokens_ptr, token_batch_stride, token_stride, sequence, position, k,
        shift, shift_batch_stride, shift_row_stride,
    )  # fmt: skip
    row_ptr = logits_ptr + local // count * batch_stride + local % count * row_stride
    field_stride = rows.to(tl.int64) * slots
    row_at = local * slots

    top, has_nan = row_tops(sums_ptr, field_stride, row_at, slots, live, ROWS, SLOTS)
    knows = live & (has_nan == 0) & (top > float("-inf"))
    changes = knows
    threshold = top
    if FILTERED:
        threshold = tl.load(threshold_ptr + local, mask=live, other=0.0)
    log_sum_exp, log_mass = top, top
    if NORMALIZE or log_sum_exp_ptr is not None or raw_log_prob_ptr is not None:
        one = tl.full([ROWS], 1.0, dtype=tl.float32)
        FIELD: tl.constexpr = LAW if RAW_IS_LAW else RAW
        mass = row_sum(sums_ptr, field_stride, row_at, slots, live, top, one, FIELD, ROWS, SLOTS)
        log_mass = tl.where(knows, tl.log(mass).to(tl.float32), NAN)
        log_sum_exp = top + log_mass
    if log_sum_exp_ptr is not None:
        tl.store(log_sum_exp_ptr + row, log_sum_exp, mask=inside)
    if entropy_ptr is not None:
        BEFORE: tl.constexpr = TEMPERED if FILTERED else LAW
        entropy = entropies(sums_ptr, field_stride, row_at, slots, live, top, inverse, BEFORE, ROWS, SLOTS)
        entropy = tl.where(is_greedy, 0.0, entropy)
        tl.store(entropy_ptr + row, tl.where(knows, entropy, NAN), mask=inside)
    if margin_ptr is not None or argmax_ptr is not None:
        leader, second = leading_slot(sums_ptr, field_stride, row_at, slots, live, top, ROWS, SLOTS)
        start = leader.to(tl.int64) * SLOT
        g = load_own_logits(
            row_ptr, vocab_stride, start, vocab_size, knows, softcap, shift, shifted, by, SLOT
        )
        margin, argmax = _margin_and_argmax(g, start, top, second)
        if margin_ptr is not None:
            tl.store(margin_ptr + row, tl.where(knows, margin, NAN), mask=inside)
        if argmax_ptr is not None:
            tl.store(argmax_ptr + row, tl.where(knows, argmax, -1), mask=inside)

    keep_word, side_word, column_word, accept_word = words_at(seeds, steps, sample_id, position, 0, _KEEP)
    alpha = tl.full([ROWS], 1.0, dtype=tl.float32)
    if mixture is not None:
        alpha = row_value(mixture, mixture_batch_stride, mixture_row_stride, sequence, k, tl.float32)
    if rate is not None:
        _, token = present_tokens(tokens_ptr, token_batch_stride, token_stride, sequence, position)
        h = logit_of(row_ptr, vocab_stride, token, vocab_size, live, softcap, shift, shifted, by)
        if NORMALIZE:
            h = (h - top) - log_mass  # a log-sum-exp far from 0 is rounded
        log_pi = _log_pi(noise_log_probs_ptr, uniform_log_prob, token, token_bound, live)
        if mixture is not None:
            h = log_mixture(h, alpha, log_pi)
        eps = row_value(rate, rate_batch_stride, rate_row_stride, sequence, k, tl.float32)
        # A token that is none is left as it is.
        is_legal = live & (token >= 0) & (token < token_bound)
        f = tl.where(is_legal, log_odds(h, eps, log_pi), NAN)
        changes &= keeps_token(f, keep_word) == 0
        if keep_prob_ptr is not None:
            tl.store(keep_prob_ptr + row, tl.where(knows, sigmoid(f), NAN), mask=inside)

    group = winning_group(
        sums_ptr, field_stride, row_at, slots, live, top, inverse, is_greedy, seeds, steps, sample_id,
        position,
        ROWS, GROUPS, PARTS,
    )  # fmt: skip
    start = group.to(tl.int64) * _RACE_GROUP
    g = load_own_logits(row_ptr, vocab_stride, start, vocab_size, changes, softcap, shift, shifted, by, BLOCK)
    winner, drawn_logit = _winning_token(
        g, start, top, threshold, inverse, is_greedy, seeds, steps, sample_id, position, FILTERED, BLOCK
    )
    drawn = winner
    if mixture is not None:
        if noise_mask is not None:
            noise_token = tl.zeros_like(winner) + noise_mask
        else:
            noise_token = _noise_token(column_word, accept_word, noise_table_ptr, vocab_size, live)
        draws_law = takes_law(alpha, side_word)
        drawn = tl.where(draws_law, winner, noise_token)
        of_noise = logit_of(
            row_ptr, vocab_stride, noise_token, vocab_size, changes, softcap, shift, shifted, by
        )
        drawn_logit = tl.where(draws_law, drawn_logit, of_noise)
    if log_prob_ptr is not None:
        law = row_sum(sums_ptr, field_stride, row_at, slots, live, top, inverse, LAW, ROWS, SLOTS)
        z = tempered(drawn_logit, top, inverse)
        log_prob = z - tl.log(law).to(tl.float32)
        if FILTERED:
            log_prob = tl.where(z >= threshold, log_prob, float("-inf"))
        log_prob = tl.where(is_greedy, tl.where(drawn == winner, 0.0, float("-inf")), log_prob)
        if mixture is not None:
            log_pi = _log_pi(noise_log_probs_ptr, uniform_log_prob, drawn, token_bound, changes)
            log_prob = log_mixture(log_prob, alpha, log_pi)
        tl.store(log_prob_ptr + row, tl.where(changes, log_prob, NAN), mask=inside)
    if raw_log_prob_ptr is not None:
        tl.store(raw_log_prob_ptr + row, tl.where(changes, (drawn_logit - top) - log_mass, NAN), mask=inside)
    token_at, _ = present_tokens(tokens_ptr, token_batch_stride, token_stride, sequence, position)
    tl.store(token_at, drawn.to(tokens_ptr.dtype.element_ty), mask=changes)
