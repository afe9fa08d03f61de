"""`sigmoid_bce` and `linear_sigmoid_bce` in Triton.

Forward and the gradient of hidden: a program takes a block of rows and gathers the weights of one
candidate each at a time; from logits, of many candidates. The gradient of the weight: candidates sorted by
token (stable), then one program per token, which sums in the order of the rows, so the result is the same on
every run. That of logits: the same, sorted by logit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ggm_kernels.arguments.sigmoid_bce import SharedGradients, entries_by_logit

_ROWS = 8  # rows of one program
_MAX_COLUMNS = 512  # elements of hidden handled at once
_MAX_CANDIDATES = 128  # of one row, from logits
_ENTRIES = 256  # candidates of one program where each has a single number


def sigmoid_bce(logits, candidates, signal_weight, noise_weight, offset):
    """`sigmoid_bce` on checked arguments."""
    return _forward(logits, None, candidates, signal_weight, noise_weight, None, offset)


def linear_sigmoid_bce(hidden, weight, candidates, signal_weight, noise_weight, bias, offset):
    """`linear_sigmoid_bce` on checked arguments."""
    return _forward(hidden, weight, candidates, signal_weight, noise_weight, bias, offset)


def sigmoid_bce_backward(grad, candidate_logits, candidates, signal_weight, noise_weight, vocab_size, dtype):
    """Gradient of the logits [N, vocab_size]."""
    grad_f = _candidate_gradients(grad, candidate_logits, signal_weight, noise_weight)
    grad_logits = torch.zeros(grad_f.shape[0], vocab_size, dtype=dtype, device=grad_f.device)
    entries, order = entries_by_logit(candidates, vocab_size)
    size = entries.numel()
    if size:
        with torch.cuda.device_of(grad_f):
            _logits_kernel[(triton.cdiv(size, _ENTRIES),)](
                grad_f, entries, order, grad_logits, size, BLOCK=_ENTRIES
            )
    return grad_logits


def linear_sigmoid_bce_backward(
    grad,
    candidate_logits,
    hidden,
    weight,
    candidates,
    signal_weight,
    noise_weight,
    needs,
    shared: SharedGradients | None = None,
):
    """Gradients of hidden, weight and bias, each None where `needs` says so; what is shared is added."""
    grad_f = _candidate_gradients(grad, candidate_logits, signal_weight, noise_weight)
    candidates = candidates.contiguous()
    of_shared = None if shared is None else shared.hidden
    grad_hidden = _hidden_gradient(grad_f, weight, candidates, hidden, of_shared) if needs[0] else None
    grad_weight, grad_bias = None, None
    if needs[1] or needs[2]:
        tokens, order = candidates.flatten().sort(stable=True)
        grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        grad_bias = weight.new_zeros(weight.shape[0]) if needs[2] else None
        if shared is not None:
            shared.write(grad_weight, grad_bias)  # the kernel writes the rows of candidates anew
        _token_gradients(grad_f, hidden, tokens, order, candidates, grad_weight, grad_bias, shared)
    return grad_hidden, grad_weight, grad_bias


def _forward(hidden, weight, candidates, signal_weight, noise_weight, bias, offset):
    rows, count = candidates.shape
    candidates = candidates.contiguous()
    offset = None if offset is None else offset.to(torch.float32).contiguous()
    bias = None if bias is None else bias.contiguous()
    loss = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    candidate_logits = torch.empty(rows, count, dtype=torch.float32, device=hidden.device)
    if rows == 0:
        return loss, candidate_logits
    with torch.cuda.device_of(hidden):
        if weight is None:
            columns = min(_MAX_CANDIDATES, triton.next_power_of_2(max(1, count)))
            _gather_kernel[(triton.cdiv(rows, _ROWS),)](
                hidden,
                *hidden.stride(),
                offset,
                candidates,
                signal_weight,
                *signal_weight.stride(),
                noise_weight,
                *noise_weight.stride(),
                loss,
                candidate_logits,
                rows,
                hidden.shape[1],
                count,
                ROWS=_ROWS,
                COLUMNS=columns,
            )
            return loss, candidate_logits
        _forward_kernel[(triton.cdiv(rows, _ROWS),)](
            hidden,
            *hidden.stride(),
            weight,
            *weight.stride(),
            bias,
            offset,
            candidates,
            signal_weight,
            *signal_weight.stride(),
            noise_weight,
            *noise_weight.stride(),
            loss,
            candidate_logits,
            rows,
            weight.shape[0],
            COUNT=count,
            HIDDEN_SIZE=hidden.shape[1],
            ROWS=_ROWS,
            COLUMNS=_columns(hidden),
        )
    return loss, candidate_logits


def _columns(hidden: torch.Tensor) -> int:
    return min(_MAX_COLUMNS, max(16, triton.next_power_of_2(hidden.shape[1])))


@triton.jit
def _softplus_pair(f):
    """softplus(-f) and softplus(f), from one log1p(exp(-|f|)) that keeps its relative precision."""
    e = tl.exp(-tl.abs(f))
    one_plus = 1.0 + e
    rest = one_plus - 1.0
    both = tl.where(rest == 0.0, e, tl.log(one_plus) * (e / tl.where(rest == 0.0, 1.0, rest)))
    return tl.maximum(-f, 0.0) + both, tl.maximum(f, 0.0) + both


@triton.jit
def _candidate_loss(f, signal, noise):
    """Weighted loss of candidates. A weight of 0 switches its term off, also where that term is infinite."""
    of_signal, of_noise = _softplus_pair(f)
    return tl.where(signal == 0.0, 0.0, signal * of_signal) + tl.where(noise == 0.0, 0.0, noise * of_noise)


@triton.jit
def _derivative(f, signal, noise):
    """Derivative of a candidate's loss by its logit."""
    e = tl.exp(-tl.abs(f))
    of_larger = 1.0 / (1.0 + e)
    of_smaller = e * of_larger
    of_f = tl.where(f < 0.0, of_smaller, of_larger)
    of_minus_f = tl.where(f < 0.0, of_larger, of_smaller)
    return noise * of_f - signal * of_minus_f


@triton.jit(do_not_specialize=["rows", "vocab_size"])
def _forward_kernel(
    hidden_ptr,
    hidden_row_stride,
    hidden_stride,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    bias_ptr,
    offset_ptr,
    candidates_ptr,
    signal_ptr,
    signal_row_stride,
    signal_stride,
    noise_ptr,
    noise_row_stride,
    noise_stride,
    loss_ptr,
    candidate_logits_ptr,
    rows,
    vocab_size,
    COUNT: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    loss = tl.zeros([ROWS], dtype=tl.float64)  # a row may have as many candidates as there are tokens
    for column in range(COUNT):
        token = tl.load(candidates_ptr + row * COUNT + column, mask=inside, other=0).to(tl.int64)
        # An id out of range is the caller's error; it must not become an access out of bounds.
        legal = inside & (token >= 0) & (token < vocab_size)
        f = tl.zeros([ROWS], dtype=tl.float32)
        for start in range(0, HIDDEN_SIZE, COLUMNS):
            d = start + tl.arange(0, COLUMNS)
            mask = legal[:, None] & (d < HIDDEN_SIZE)[None, :]
            h_at = hidden_ptr + row[:, None] * hidden_row_stride + d[None, :] * hidden_stride
            w_at = weight_ptr + token[:, None] * weight_row_stride + d[None, :] * weight_stride
            h = tl.load(h_at, mask=mask, other=0.0).to(tl.float32)
            w = tl.load(w_at, mask=mask, other=0.0).to(tl.float32)
            f += tl.sum(h * w, axis=1)
        if bias_ptr is not None:
            f += tl.load(bias_ptr + token, mask=legal, other=0.0).to(tl.float32)
        if offset_ptr is not None:
            f += tl.load(offset_ptr + row, mask=inside, other=0.0)
        tl.store(candidate_logits_ptr + row * COUNT + column, f, mask=inside)
        signal_at = signal_ptr + row * signal_row_stride + column * signal_stride
        signal = tl.load(signal_at, mask=inside, other=0.0)
        noise = tl.load(noise_ptr + row * noise_row_stride + column * noise_stride, mask=inside, other=0.0)
        loss += _candidate_loss(f, signal, noise).to(tl.float64)
    tl.store(loss_ptr + row, loss.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["rows", "vocab_size", "count"])
def _gather_kernel(
    logits_ptr,
    logits_row_stride,
    logits_stride,
    offset_ptr,
    candidates_ptr,
    signal_ptr,
    signal_row_stride,
    signal_stride,
    noise_ptr,
    noise_row_stride,
    noise_stride,
    loss_ptr,
    candidate_logits_ptr,
    rows,
    vocab_size,
    count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Losses from logits, `COLUMNS` candidates of each row at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    loss = tl.zeros([ROWS], dtype=tl.float64)
    start = 0
    while start < count:
        column = start + tl.arange(0, COLUMNS)
        there = inside[:, None] & (column < count)[None, :]
        at = row[:, None] * count + column[None, :]
        token = tl.load(candidates_ptr + at, mask=there, other=0).to(tl.int64)
        legal = there & (token >= 0) & (token < vocab_size)
        logit_at = logits_ptr + row[:, None] * logits_row_stride + token * logits_stride
        f = tl.load(logit_at, mask=legal, other=0.0).to(tl.float32)
        if offset_ptr is not None:
            f += tl.load(offset_ptr + row, mask=inside, other=0.0)[:, None]
        tl.store(candidate_logits_ptr + at, f, mask=there)
        signal_at = signal_ptr + row[:, None] * signal_row_stride + column[None, :] * signal_stride
        noise_at = noise_ptr + row[:, None] * noise_row_stride + column[None, :] * noise_stride
        signal = tl.load(signal_at, mask=there, other=0.0)
        noise = tl.load(noise_at, mask=there, other=0.0)
        loss += tl.sum(_candidate_loss(f, signal, noise).to(tl.float64), axis=1)
        start += COLUMNS
    tl.store(loss_ptr + row, loss.to(tl.float32), mask=inside)


def _candidate_gradients(grad, candidate_logits, signal_weight, noise_weight) -> torch.Tensor:
    """Gradient of every candidate logit [N, C]."""
    grad_f = torch.empty_like(candidate_logits)
    size = grad_f.numel()
    if size:
        grad = grad.contiguous()
        with torch.cuda.device_of(grad):
            _gradient_kernel[(triton.cdiv(size, 1024),)](
                grad,
                candidate_logits,
                signal_weight,
                *signal_weight.stride(),
                noise_weight,
                *noise_weight.stride(),
                grad_f,
                size,
                COUNT=grad_f.shape[1],
                BLOCK=1024,
            )
    return grad_f


@triton.jit(do_not_specialize=["size"])
def _gradient_kernel(
    grad_ptr,
    candidate_logits_ptr,
    signal_ptr,
    signal_row_stride,
    signal_stride,
    noise_ptr,
    noise_row_stride,
    noise_stride,
    out_ptr,
    size,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    row, column = at // COUNT, at % COUNT
    f = tl.load(candidate_logits_ptr + at, mask=inside, other=0.0)
    signal_at = signal_ptr + row * signal_row_stride + column * signal_stride
    signal = tl.load(signal_at, mask=inside, other=0.0)
    noise = tl.load(noise_ptr + row * noise_row_stride + column * noise_stride, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + row, mask=inside, other=0.0)
    tl.store(out_ptr + at, grad * _derivative(f, signal, noise), mask=inside)


@triton.jit(do_not_specialize=["size"])
def _logits_kernel(grad_f_ptr, entries_ptr, order_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    entry = tl.load(entries_ptr + at, mask=inside, other=-1)
    before = tl.load(entries_ptr + at - 1, mask=inside & (at > 0), other=-1)
    # Whoever has the first entry of a logit takes all of them.
    first = (entry >= 0) & (entry != before)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    more = first
    while tl.max(more.to(tl.int32), axis=0) > 0:
        index = tl.load(order_ptr + at, mask=more, other=0)
        total += tl.load(grad_f_ptr + index, mask=more, other=0.0)
        at += 1
        more = more & (tl.load(entries_ptr + at, mask=more & (at < size), other=-1) == entry)
    tl.store(out_ptr + entry, total.to(out_ptr.dtype.element_ty), mask=first)


def _hidden_gradient(grad_f, weight, candidates, hidden, of_shared) -> torch.Tensor:
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    rows, hidden_size = hidden.shape
    columns = _columns(hidden)
    if grad_hidden.numel():
        with torch.cuda.device_of(hidden):
            _hidden_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(hidden_size, columns))](
                grad_f,
                weight,
                *weight.stride(),
                candidates,
                of_shared,
                grad_hidden,
                rows,
                weight.shape[0],
                COUNT=candidates.shape[1],
                HIDDEN_SIZE=hidden_size,
                ROWS=_ROWS,
                COLUMNS=columns,
            )
    return grad_hidden


@triton.jit(do_not_specialize=["rows", "vocab_size"])
def _hidden_kernel(
    grad_f_ptr,
    weight_ptr,
    weight_row_stride,
    weight_stride,
    candidates_ptr,
    shared_ptr,
    out_ptr,
    rows,
    vocab_size,
    COUNT: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    whole = inside[:, None] & (d < HIDDEN_SIZE)[None, :]
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    if shared_ptr is not None:
        total = tl.load(shared_ptr + row[:, None] * HIDDEN_SIZE + d[None, :], mask=whole, other=0.0)
    for column in range(COUNT):
        token = tl.load(candidates_ptr + row * COUNT + column, mask=inside, other=0).to(tl.int64)
        legal = inside & (token >= 0) & (token < vocab_size)
        grad = tl.load(grad_f_ptr + row * COUNT + column, mask=inside, other=0.0)
        at = weight_ptr + token[:, None] * weight_row_stride + d[None, :] * weight_stride
        mask = legal[:, None] & (d < HIDDEN_SIZE)[None, :]
        total += grad[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
    out_at = out_ptr + row[:, None] * HIDDEN_SIZE + d[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=whole)


def _token_gradients(grad_f, hidden, tokens, order, candidates, grad_weight, grad_bias, shared) -> None:
    """Write the rows of grad_weight and grad_bias that `tokens` (sorted; `order` says whence) names."""
    size, hidden_size = tokens.numel(), hidden.shape[1]
    columns = _columns(hidden)
    blocks = max(1, triton.cdiv(hidden_size, columns)) if grad_weight is not None else 1
    if size == 0:
        return
    places = None if shared is None else shared.places(candidates)
    target = grad_weight if grad_weight is not None else grad_bias
    with torch.cuda.device_of(hidden):
        _token_kernel[(size, blocks)](
            grad_f,
            hidden,
            *hidden.stride(),
            tokens,
            order,
            places,
            None if shared is None else shared.rows,
            None if shared is None else shared.bias,
            grad_weight,
            grad_bias,
            size,
            target.shape[0],
            COUNT=candidates.shape[1],
            HIDDEN_SIZE=hidden_size,
            COLUMNS=columns,
        )


@triton.jit(do_not_specialize=["size", "vocab_size"])
def _token_kernel(
    grad_f_ptr,
    hidden_ptr,
    hidden_row_stride,
    hidden_stride,
    tokens_ptr,
    order_ptr,
    places_ptr,
    shared_weight_ptr,
    shared_bias_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    size,
    vocab_size,
    COUNT: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens_ptr + first).to(tl.int64)
    before = tl.load(tokens_ptr + first - 1, mask=first > 0, other=-1).to(tl.int64)
    # Whoever has the first entry of a token takes all of them.
    if (token != before) & (token >= 0) & (token < vocab_size):
        d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = d < HIDDEN_SIZE
        total = tl.zeros([COLUMNS], dtype=tl.float32)
        bias_total = tl.zeros([], dtype=tl.float32)
        if places_ptr is not None:
            place = tl.load(places_ptr + tl.load(order_ptr + first))
            if grad_weight_ptr is not None:
                shared_at = shared_weight_ptr + place * HIDDEN_SIZE + d
                total = tl.load(shared_at, mask=inside & (place >= 0), other=0.0)
            if grad_bias_ptr is not None:
                bias_total = tl.load(shared_bias_ptr + place, mask=place >= 0, other=0.0)
        entry = first
        current = token
        while current == token:
            index = tl.load(order_ptr + entry)
            grad = tl.load(grad_f_ptr + index)
            if grad_weight_ptr is not None:
                at = hidden_ptr + (index // COUNT) * hidden_row_stride + d * hidden_stride
                total += grad * tl.load(at, mask=inside, other=0.0).to(tl.float32)
            bias_total += grad
            entry += 1
            current = tl.load(tokens_ptr + entry, mask=entry < size, other=-1).to(tl.int64)
        if grad_weight_ptr is not None:
            out = grad_weight_ptr + token * HIDDEN_SIZE + d
            tl.store(out, total.to(grad_weight_ptr.dtype.element_ty), mask=inside)
        if grad_bias_ptr is not None:  # noqa: SIM102 (decided when it is compiled)
            if tl.program_id(1) == 0:
                tl.store(grad_bias_ptr + token, bias_total.to(grad_bias_ptr.dtype.element_ty))
