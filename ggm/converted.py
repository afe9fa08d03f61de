"""Denoisers of uniform diffusion sampled by Glauber dynamics: `from_denoiser`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ggm.arguments import check_factors, check_logits
from ggm.chain import Chain, ChainConfig
from ggm.mixture import leave_one_out_shift, noise_probs
from ggm.sampling.event_driven import AllConditionals
from ggm.sampling.sampler import Sampler, keep_prob_seen
from ggm.sampling.steps import Conditionals, DataPrediction, LinearLogits, Prediction, times_of
from ggm_kernels import NoiseLaw

Denoiser = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"]


def one_minus(keep_prob: torch.Tensor) -> torch.Tensor:
    """Time t of diffusion with alpha_t = 1 - t."""
    return 1.0 - keep_prob


def from_denoiser(
    denoiser: Denoiser,
    vocab_size: int,
    chain: ChainConfig,
    *,
    noise: NoiseLaw | None = None,
    time: Callable[[torch.Tensor], torch.Tensor] = one_minus,
) -> ConvertedDenoiser:
    """Sample any denoiser of uniform (or unigram) diffusion by Glauber dynamics.

    Parameters
    ----------
    denoiser : callable
        ``denoiser(tokens, time)``, int64 [B, L] and float32 [B], gives logits of the data token at every
        position given all tokens, float [B, L, V], or the factors of them, hidden states [B, L, d] and a
        weight [V, d]. An `nn.Module` or any function. Of a head with a column for a mask only the V others.
    vocab_size : int
        V.
    chain : ChainConfig
        The chain to undo: its length is that of the denoiser's sequences.
    noise : NoiseLaw, optional
        The distribution of the noise that the denoiser was trained with; None is uniform.
    time : callable
        Time of the denoiser at which tokens are data with probability alpha, float64 [B] to [B]; the
        default is 1 - alpha.

    Returns
    -------
    ConvertedDenoiser
        With `sample` and `infill` as `GGM` has them, event by event, too.

    Notes
    -----
    A step divides out what the token at a position tells of itself (docs/mathematics.md). The denoiser
    knows states in which all tokens are equally noisy; within a sweep of the chain they are not, and it is
    told their mean. That costs a bias which falls faster than the number of sweeps rises, and which the
    page shows on enumerable distributions. Given tokens of `infill` are certain, which the denoiser is not
    told either. Source: our own derivation.

    Examples
    --------
    >>> import torch
    >>> from ggm import ChainConfig, SamplingConfig, from_denoiser
    >>> table = torch.randn(5)
    >>> def denoiser(tokens, time):
    ...     return table.expand(*tokens.shape, -1)
    >>> converted = from_denoiser(denoiser, 5, ChainConfig(length=8, sweeps=16))
    >>> converted.sample(2, SamplingConfig(sites_per_step=4), seed=0).tokens.shape
    torch.Size([2, 8])
    """
    return ConvertedDenoiser(denoiser, vocab_size, chain, noise, time)


class ConvertedDenoiser(nn.Module, Sampler):
    """What `from_denoiser` gives."""

    anchor: torch.Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        vocab_size: int,
        chain: ChainConfig,
        noise: NoiseLaw | None,
        time: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size: got {vocab_size}; allowed: 1 or more")
        self.denoiser, self.chain, self.noise, self.time = denoiser, Chain.from_config(chain), noise, time
        self.vocab_size = vocab_size
        some = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
        device = torch.device("cpu") if some is None else some.device
        self.register_buffer("anchor", torch.zeros((), device=device), persistent=False)

    @property
    def weights(self) -> torch.Tensor:
        """A tensor on the device where tokens must be; `to(device)` moves it with the denoiser."""
        return self.anchor

    def conditionals(self, frozen: torch.Tensor | None = None) -> Conditionals:
        """What `ggm.sampling.stepwise.denoise` takes, given clean positions, bool [B, L]."""

        def conditionals(
            tokens: torch.Tensor,
            positions: torch.Tensor,
            time: int | torch.Tensor,
            *,
            visited: bool = True,
        ) -> Prediction:
            times = times_of(time, tokens)
            positions = positions.expand(tokens.shape[0], -1)
            seen = keep_prob_seen(self.chain, positions, times) if visited else self.chain.keep_prob(times)
            return self._predict(tokens, positions, times, seen, frozen)

        return conditionals

    def all_conditionals(self, frozen: torch.Tensor | None = None) -> AllConditionals:
        """What `ggm.sampling.event_driven.denoise_by_events` takes, given clean positions, bool [B, L]."""

        def conditionals(tokens: torch.Tensor, times: torch.Tensor, now: torch.Tensor) -> Prediction:
            return self._predict(tokens, None, times, self.chain.keep_prob(now), frozen)

        return conditionals

    def _predict(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        times: torch.Tensor,
        seen: torch.Tensor,
        frozen: torch.Tensor | None,
    ) -> DataPrediction:
        """Prediction at some positions [B, K], or at all; `seen`: keep probabilities of tokens [B, L]."""
        drawn = torch.ones_like(seen) if frozen is None else (~frozen).to(seen)
        level = (seen * drawn).sum(dim=1) / drawn.sum(dim=1).clamp_min(1.0)
        given = self.denoiser(tokens, self.time(level).float())
        logits: torch.Tensor | LinearLogits
        if isinstance(given, torch.Tensor):
            check_logits(given, tokens, self.vocab_size)
            logits = _at(given, positions)
        else:
            check_factors(*given, tokens, self.vocab_size)
            hidden, weight = given
            logits = LinearLogits(_at(hidden, positions), weight, None)
        keep_prob = self.chain.keep_prob(times)
        if positions is not None:
            tokens, keep_prob = tokens.gather(1, positions), keep_prob.gather(1, positions)
        shift = leave_one_out_shift(level[:, None], noise_probs(self.noise, tokens, self.vocab_size))
        return DataPrediction(logits, keep_prob, shift)


def _at(values: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Rows of values [B, L, D] at positions [B, K], or all."""
    if positions is None:
        return values
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
