"""`commit` in the compiled core."""

from __future__ import annotations

import math

import torch

from ggm_kernels.native.compiled import DTYPES, Kernels, address
from ggm_kernels.ops.commit import Choice

_NO_COUNT = 2**63 - 1


def commit(
    kernels: Kernels, tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice
) -> bool | None:
    """`commit` on checked arguments; of csrc/cpu False, with nothing written, for a value out of range."""
    args = arguments_of(kernels, tokens, proposal, score, choice)
    if kernels.are_device_code:
        kernels.core.cuda_commit(args, *kernels.queue(tokens.device))
        return None
    return kernels.core.cpu_commit(args, torch.get_num_threads())


def arguments_of(
    kernels: Kernels, tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice
):
    """In the form of the core."""
    step_value, step_pointer = kernels.step_arguments(choice.step)
    return kernels.core.CommitArgs(
        tokens.data_ptr(),
        tokens.element_size(),
        *tokens.stride(),
        proposal.data_ptr(),
        proposal.element_size(),
        *proposal.stride(),
        score.data_ptr(),
        DTYPES[score.dtype],
        *score.stride(),
        *_matrix(choice.eligible),
        *_matrix(choice.accepted),
        *_per_row(choice.count, _NO_COUNT),
        *_per_row(choice.threshold, -math.inf),
        *_per_row(choice.budget, math.inf),
        choice.budget is not None,
        choice.noises_rest,
        address(choice.noise_table),
        -1 if choice.mask_id is None else choice.mask_id,
        choice.vocab_size,
        address(choice.sample_ids),
        *tokens.shape,
        choice.seed & 0xFFFFFFFFFFFFFFFF,
        step_value,
        step_pointer,
    )


def _matrix(mask: torch.Tensor | None) -> tuple[int, ...]:
    """Address and strides."""
    return (0, 0, 0) if mask is None else (mask.data_ptr(), *mask.stride())


def _per_row(limit, otherwise) -> tuple:
    """Value, address and stride of a limit: the value counts where the address is null."""
    if isinstance(limit, torch.Tensor):
        return otherwise, limit.data_ptr(), limit.stride(0) if limit.dim() == 1 else 0
    return (otherwise if limit is None else limit), 0, 0
