"""`corrupt` in the compiled core."""

from __future__ import annotations

import torch

from ggm_kernels.native.compiled import Kernels, address, empty


def corrupt(
    kernels: Kernels,
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
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`corrupt` on checked, contiguous arguments; of csrc/cpu None where a value is out of range."""
    noisy, is_signal = results_of(tokens)
    args = arguments_of(
        kernels, noisy, is_signal, tokens, keep_prob, vocab_size, seed, step, sample_ids, frozen,
        noise_table, mask_id, stream,
    )  # fmt: skip
    if kernels.are_device_code:
        kernels.core.cuda_corrupt(args, **kernels.queue(tokens.device))
    elif not kernels.core.cpu_corrupt(args, torch.get_num_threads()):
        return None
    return noisy, is_signal


def results_of(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the results of contiguous tokens."""
    return empty(tokens, tokens.dtype), empty(tokens, torch.bool)


def arguments_of(
    kernels: Kernels, noisy, is_signal, tokens, keep_prob, vocab_size, seed, step, sample_ids, frozen,
    noise_table, mask_id, stream,
):  # fmt: skip
    """In the form of the core."""
    step_value, step_pointer = kernels.step_arguments(step)
    return kernels.core.CorruptArgs(
        tokens=tokens.data_ptr(),
        token_bytes=tokens.element_size(),
        keep_prob=keep_prob.data_ptr(),
        keep_per_position=keep_prob.dim() == 2,
        keep_row_stride=min(keep_prob.dim(), 1),
        frozen=address(frozen),
        sample_ids=address(sample_ids),
        noise=(address(noise_table), -1 if mask_id is None else mask_id, vocab_size),
        noisy=noisy.data_ptr(),
        is_signal=is_signal.data_ptr(),
        batch=tokens.shape[0],
        length=tokens.shape[1],
        token_bound=vocab_size + (mask_id == vocab_size),
        seed=seed & 0xFFFFFFFFFFFFFFFF,
        step=step_value,
        step_pointer=step_pointer,
        stream=stream,
    )
