"""Rows of a Glauber step inside Triton kernels: their places, what each was given, logits as they count."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_places(
    local, first_row, rows, count, length, positions_ptr, position_batch_stride, position_stride, frozen_ptr
):
    """Row of the step, sequence, place in it and position of rows `local`, int64, and whether it has work.

    Nothing is where there is no position (-1), one that is frozen, or one outside the tokens; and beyond the
    last row. What is said of such rows is of no account, but in bounds: so loads of values by row need no
    mask, some of which, in layouts of small tiles, are beyond the compiler.
    """
    row = first_row + tl.minimum(local, rows - 1)
    sequence = row // count
    k = row % count
    given = tl.load(positions_ptr + sequence * position_batch_stride + k * position_stride).to(tl.int64)
    position = tl.maximum(tl.minimum(given, length - 1), 0)
    live = (local < rows) & (position == given)
    if frozen_ptr is not None:
        live = live & (tl.load(frozen_ptr + sequence * length + position) == 0)
    return row, sequence, k, position, live


@triton.jit
def row_value(value, batch_stride, row_stride, sequence, k, DTYPE: tl.constexpr):
    """A number, or what an address holds row by row: [ROWS] of DTYPE."""
    if isinstance(value, float):  # so the interpreter passes them
        return tl.full(sequence.shape, value, DTYPE)
    elif value.dtype.is_ptr():
        return tl.load(value + sequence * batch_stride + k * row_stride).to(DTYPE)
    else:
        return tl.zeros(sequence.shape, DTYPE) + value.to(DTYPE)


@triton.jit
def present_tokens(tokens_ptr, token_batch_stride, token_stride, sequence, position):
    """Address and value (int64) of the token that stands in each row."""
    at = tokens_ptr + sequence * token_batch_stride + position * token_stride
    return at, tl.load(at).to(tl.int64)


@triton.jit
def shifts_of(
    tokens_ptr, token_batch_stride, token_stride, sequence, position, k,
    shift, shift_batch_stride, shift_row_stride,
):  # fmt: skip
    """Token whose logit is shifted, and by how much; of no account where `shift` is None."""
    if shift is None:
        return sequence, position.to(tl.float32)
    else:
        _, token = present_tokens(tokens_ptr, token_batch_stride, token_stride, sequence, position)
        return token, row_value(shift, shift_batch_stride, shift_row_stride, sequence, k, tl.float32)


@triton.jit
def tanh(x):
    """Hyperbolic tangent: a minimax polynomial near 0, exponentials elsewhere. NaN for NaN."""
    square = x * x
    p = square * 0.002214741427451372 - 0.008272258564829826
    p = p * square + 0.02174609713256359
    p = p * square - 0.05395632982254028
    p = p * square + 0.13333290815353394
    p = p * square - 0.3333333432674408
    near = p * square * x + x
    e = tl.exp(tl.abs(x) * -2.0)
    far = 1.0 - (e + e) / (1.0 + e)  # rounded once: below 1 as long as tanh is
    return tl.where(tl.abs(x) < 0.65, near, tl.where(x < 0.0, -far, far))


@triton.jit
def edited(g, token, is_token, softcap, shift, shifted, by):
    """Logits g of `token`, alike in shape, with the soft cap and the shift of the token that stands there.

    What is no token has -inf, which a soft cap would lift.
    """
    if softcap is not None:
        g = tl.where(is_token, softcap * tanh(g / softcap), float("-inf"))
    if shift is not None:
        g = tl.where(token == shifted, g + by, g)
    return g


@triton.jit
def load_logits(
    row_ptr, vocab_stride, start, vocab_size, live, softcap, shift, shifted, by, BLOCK: tl.constexpr
):
    """Logits [ROWS, BLOCK] of tokens from `start` (a scalar) on in float32; -inf from `vocab_size` on."""
    token = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    mask = live[:, None] & (token < vocab_size)[None, :]
    at = row_ptr[:, None] + token.to(tl.int64)[None, :] * vocab_stride
    g = tl.load(at, mask=mask, other=float("-inf")).to(tl.float32)
    return edited(g, token[None, :], mask, softcap, shift, shifted[:, None], by[:, None])


@triton.jit
def load_own_logits(
    row_ptr, vocab_stride, start, vocab_size, live, softcap, shift, shifted, by, BLOCK: tl.constexpr
):
    """The same where each row has a `start` [ROWS] of its own."""
    token = start[:, None] + tl.arange(0, BLOCK)[None, :]
    mask = live[:, None] & (token < vocab_size)
    g = tl.load(row_ptr[:, None] + token * vocab_stride, mask=mask, other=float("-inf")).to(tl.float32)
    return edited(g, token, mask, softcap, shift, shifted[:, None], by[:, None])


@triton.jit
def logit_of(row_ptr, vocab_stride, token, vocab_size, live, softcap, shift, shifted, by):
    """Logit of one token a row, [ROWS]; -inf for a token that has none."""
    has_logit = live & (token >= 0) & (token < vocab_size)
    g = tl.load(row_ptr + token * vocab_stride, mask=has_logit, other=float("-inf")).to(tl.float32)
    return edited(g, token, has_logit, softcap, shift, shifted, by)
