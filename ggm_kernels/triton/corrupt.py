"""`corrupt` in Triton: one program takes a block of positions of one sequence."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ggm_kernels.triton.philox import words_at

_MAX_BLOCK = 1024  # positions of one program
_TOKEN_BLOCK = tl.constexpr(0)  # vocabulary blocks of a corrupting stream
_ACCEPTANCE_BLOCK = tl.constexpr(1)


def corrupt(
    tokens: torch.Tensor,
    keep_prob: torch.Tensor,
    vocab_size: int,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
    noise_table: torch.Tensor | None,
    mask_id: int | None,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`corrupt` on checked, contiguous arguments."""
    batch, length = tokens.shape
    noisy = torch.empty_like(tokens)
    is_signal = torch.empty_like(tokens, dtype=torch.bool)
    if tokens.numel() == 0:
        return noisy, is_signal
    block = min(_MAX_BLOCK, max(16, triton.next_power_of_2(length)))
    blocks_per_row = triton.cdiv(length, block)
    with _device_of(tokens):
        _kernel[(batch * blocks_per_row,)](
            tokens,
            keep_prob,
            sample_ids,
            frozen,
            noise_table,
            noisy,
            is_signal,
            length,
            blocks_per_row,
            vocab_size,
            seed,
            step,
            mask_id,
            KEEP_DIMS=keep_prob.dim(),
            STEP_IS_POINTER=isinstance(step, torch.Tensor),
            STREAM=stream,
            BLOCK=block,
        )
    return noisy, is_signal


def _device_of(tensor: torch.Tensor):
    # Triton launches on the current device; off the GPU (interpreter) there is none to choose.
    return torch.cuda.device_of(tensor)


@triton.jit(do_not_specialize=["length", "blocks_per_row", "vocab_size", "seed", "step", "mask_id"])
def _kernel(
    tokens_ptr,
    keep_prob_ptr,
    sample_ids_ptr,
    frozen_ptr,
    noise_table_ptr,
    noisy_ptr,
    is_signal_ptr,
    length,
    blocks_per_row,
    vocab_size,
    seed,
    step,
    mask_id,
    KEEP_DIMS: tl.constexpr,
    STEP_IS_POINTER: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    start = (tl.program_id(0) % blocks_per_row).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    inside = position < length
    at = row * length + position
    step_value = tl.load(step) if STEP_IS_POINTER else step
    sample_id = row if sample_ids_ptr is None else tl.load(sample_ids_ptr + row)

    pair = start // 2 + tl.arange(0, BLOCK // 2)
    w0, w1, w2, w3 = words_at(seed, step_value, sample_id, pair, _TOKEN_BLOCK, STREAM)
    decide = tl.interleave(w0, w2)
    if mask_id is not None:
        noise = tl.zeros((BLOCK,), tl.int64) + mask_id
    else:
        noise = tl.umulhi(tl.interleave(w1, w3), vocab_size.to(tl.uint32)).to(tl.int64)
    if noise_table_ptr is not None:
        quad = start // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = words_at(seed, step_value, sample_id, quad, _ACCEPTANCE_BLOCK, STREAM)
        accept = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        threshold = tl.load(noise_table_ptr + 2 * noise).to(tl.uint32, bitcast=True)
        alias = tl.load(noise_table_ptr + 2 * noise + 1).to(tl.int64)
        noise = tl.where(accept < threshold, noise, alias)

    if KEEP_DIMS == 2:
        keep_prob = tl.load(keep_prob_ptr + at, mask=inside, other=0.0)
    else:
        keep_prob = tl.load(keep_prob_ptr + row * KEEP_DIMS)
    # Exact: a product with a power of two, then truncation.
    threshold = (tl.minimum(tl.maximum(keep_prob, 0.0), 1.0) * 4294967296.0).to(tl.int64)
    is_signal = decide.to(tl.int64) < threshold
    if frozen_ptr is not None:
        is_signal = is_signal | (tl.load(frozen_ptr + at, mask=inside, other=0) != 0)
    token = tl.load(tokens_ptr + at, mask=inside, other=0)
    tl.store(noisy_ptr + at, tl.where(is_signal, token, noise.to(token.dtype)), mask=inside)
    tl.store(is_signal_ptr + at, is_signal, mask=inside)
