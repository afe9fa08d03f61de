"""ReDeNoise: noise samples again, so that a sampler denoises them again."""

from __future__ import annotations

from typing import Any

import torch

from ggm.chain import Chain
from ggm.draws import uniforms
from ggm_kernels import NoiseLaw, Stream, random_tokens


def renoise(
    tokens: torch.Tensor,
    chain: Chain,
    sweeps: int,
    vocab_size: int,
    *,
    seed: int,
    step: int,
    sample_ids: torch.Tensor,
    frozen: torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
) -> torch.Tensor:
    """Run the chain forwards from time 0 through its first sweeps.

    Parameters
    ----------
    tokens : torch.Tensor
        X_0, int32 or int64 [B, L]; not written to.
    chain : Chain
        Visit order and noise rates.
    sweeps : int
        How many sweeps, 0 to S.
    vocab_size : int
        V.
    seed, step, sample_ids
        Coordinates of the draws, which come from the stream REDENOISE; step below 2**31.
    frozen : torch.Tensor, optional
        bool [B, L]: positions that keep their tokens.
    noise : NoiseLaw, optional
        pi; None is uniform.

    Returns
    -------
    torch.Tensor
        X_t at t = `sweeps` * L, of the dtype and shape of `tokens`.

    Notes
    -----
    Not `ggm_kernels.corrupt`, which draws from the stream CORRUPT alone: training may use all its steps, and
    a sample would be noised by what its sequence of the data was trained on. This runs once per pass.
    """
    times = torch.full((1,), sweeps * chain.length, device=tokens.device)
    coordinates: dict[str, Any] = {"stream": Stream.REDENOISE, "seed": seed}
    kept = uniforms(sample_ids, chain.length, step=2 * step, **coordinates) < chain.keep_prob(times)
    drawn = random_tokens(sample_ids, chain.length, vocab_size, step=2 * step + 1, noise=noise, **coordinates)
    if frozen is not None:
        kept = kept | frozen
    return torch.where(kept, tokens, drawn.to(tokens.dtype))
