"""`commit` in the compiled core."""

from __future__ import annotations

import math

import torch

from ggm_kernels.arguments.commit import Choice
from ggm_kernels.native.compiled import DTYPES, Kernels, address

_NO_COUNT = 2**63 - 1


def commit(
    kernels: Kernels, tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice
) -> bool | None:
    """`commit` on checked arguments; of csrc/cpu False, with nothing written, for a value out of range."""
    args = arguments_of(kernels, tokens, proposal, score, choice)
    if kernels.are_device_code:
        kernels.core.cuda_commit(args, **kernels.queue(tokens.device))
        return None
    return kernels.core.cpu_commit(args, torch.get_num_threads())


def arguments_of(
    kernels: Kernels, tokens: torch.Tensor, proposal: torch.Tensor, score: torch.Tensor, choice: Choice
):
    """In the form of the core."""
    step_value, step_pointer = kernels.step_arguments(choice.step)
    return kernels.core.CommitArgs(
        tokens=_matrix(tokens),
        token_bytes=tokens.element_size(),
        proposal=_matrix(proposal),
        proposal_bytes=proposal.element_size(),
        score=_matrix(score),
        dtype=DTYPES[score.dtype],
        eligible=_matrix(choice.eligible),
        accepted=_matrix(choice.accepted),
        count=_per_row(choice.count, _NO_COUNT),
        threshold=_per_row(choice.threshold, -math.inf),
        budget=_per_row(choice.budget, math.inf),
        has_budget=choice.budget is not None,
        noises_rest=choice.noises_rest,
        noise=(
            address(choice.noise_table),
            -1 if choice.mask_id is None else choice.mask_id,
            choice.vocab_size,
        ),
        sample_ids=address(choice.sample_ids),
        batch=tokens.shape[0],
        length=tokens.shape[1],
        seed=choice.seed & 0xFFFFFFFFFFFFFFFF,
        step=step_value,
        step_pointer=step_pointer,
    )


def _matrix(matrix: torch.Tensor | None) -> tuple[int, ...]:
    """Address and strides."""
    return (0, 0, 0) if matrix is None else (matrix.data_ptr(), *matrix.stride())


def _per_row(limit, otherwise) -> tuple:
    """Value, address and stride of a limit: the value counts where the address is null."""
    if isinstance(limit, torch.Tensor):
        return otherwise, limit.data_ptr(), limit.stride(0) if limit.dim() == 1 else 0
    return (otherwise if limit is None else limit), 0, 0
