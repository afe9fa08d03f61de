"""`sample` and `infill`, for everything that gives the conditionals of a chain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ggm.arguments import check_given, sample_ids_of
from ggm.chain import Chain
from ggm.data.vocabulary import Vocabulary
from ggm.sampling.any_order import DataConditionals, denoise_in_any_order
from ggm.sampling.config import SamplingConfig
from ggm.sampling.event_driven import AllConditionals, denoise_by_events
from ggm.sampling.steps import Conditionals
from ggm.sampling.stepwise import SampleResult, denoise, initial_tokens
from ggm_kernels import NoiseLaw


class Sampler:
    """Draws sequences from the conditionals of a chain.

    Attributes
    ----------
    chain : Chain
        Visit order and noise rates.
    noise : NoiseLaw or None
        pi; None is uniform.
    vocab_size : int
        V.
    vocabulary : Vocabulary
        What the tokens mean, if it is known. Samples have texts or pictures with it.
    """

    chain: Chain
    noise: NoiseLaw | None
    vocab_size: int
    vocabulary: Vocabulary = Vocabulary()

    @property
    def weights(self) -> torch.Tensor:
        """Some tensor on the device where tokens must be."""
        raise NotImplementedError

    def conditionals(self, frozen: torch.Tensor | None = None) -> Conditionals:
        """What `ggm.sampling.stepwise.denoise` takes, given clean positions, bool [B, L]."""
        raise NotImplementedError

    def all_conditionals(self, frozen: torch.Tensor | None = None) -> AllConditionals:
        """What `ggm.sampling.event_driven.denoise_by_events` takes, given clean positions, bool [B, L]."""
        raise NotImplementedError

    def data_conditionals(self, keep_or_replace: bool = False) -> DataConditionals:
        """What `ggm.sampling.any_order.denoise_in_any_order` takes.

        With `keep_or_replace` the token that stands at a position tells of it, too.

        Raises
        ------
        ValueError
            If there is no such thing.
        """
        raise ValueError("order: got one for a network that is not told what is given; allowed: chain")

    def sample(
        self,
        count: int,
        config: SamplingConfig | None = None,
        *,
        seed: int,
        sample_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> SampleResult:
        """Draw sequences.

        Parameters
        ----------
        count : int
            How many, from 0.
        config : SamplingConfig, optional
            How the reverse process is run; the default resamples one site per step.
        seed : int
            Same seed, same samples.
        sample_ids : torch.Tensor, optional
            Coordinate of each sample, int64 [count]; default 0, 1, .., count - 1.
        **options
            `progress` and, unless event-driven, `observe` of `ggm.sampling.stepwise.denoise` or
            `ggm.sampling.any_order.denoise_in_any_order`.

        Returns
        -------
        SampleResult
            Tokens int64 [count, L], network evaluations, site updates, seconds.

        Raises
        ------
        TypeError, ValueError
            If the count is negative, there are not as many ids, or the configuration is event-driven or has
            an order that is not the chain's, and the network cannot be drawn from like that.
        """
        ids = sample_ids_of(count, sample_ids, self.weights)
        tokens = self._initial(ids, seed)
        return self._denoise(tokens, config, None, seed=seed, sample_ids=ids, **options)

    def infill(
        self,
        tokens: torch.Tensor,
        frozen: torch.Tensor,
        config: SamplingConfig | None = None,
        *,
        seed: int,
        sample_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> SampleResult:
        """Draw the positions that are not frozen, given those that are.

        Parameters
        ----------
        tokens : torch.Tensor
            int64 [B, L]; read at frozen positions only.
        frozen : torch.Tensor
            bool [B, L]: what stays.
        config, seed, sample_ids, **options
            As in `sample`.

        Returns
        -------
        SampleResult
            Tokens int64 [B, L], equal to `tokens` where frozen.

        Raises
        ------
        TypeError, ValueError, IndexError
            If a shape or type is another, a frozen token is none of the vocabulary, or as in `sample`.

        Notes
        -----
        A sequence does not depend on the others, though each may have other positions frozen.
        """
        check_given(tokens, frozen, self.chain.length, self.vocab_size, self.weights)
        ids = sample_ids_of(len(tokens), sample_ids, self.weights)
        start = torch.where(frozen, tokens, self._initial(ids, seed))
        return self._denoise(start, config, frozen, seed=seed, sample_ids=ids, **options)

    def _initial(self, sample_ids: torch.Tensor, seed: int) -> torch.Tensor:
        return initial_tokens(sample_ids, self.chain.length, self.vocab_size, seed=seed, noise=self.noise)

    def _denoise(
        self,
        tokens: torch.Tensor,
        config: SamplingConfig | None,
        frozen: torch.Tensor | None,
        **options: Any,
    ) -> SampleResult:
        config = config or SamplingConfig()
        if len(tokens) == 0:
            return SampleResult(tokens, 0, 0, 0.0, self.vocabulary)
        options |= {"frozen": frozen, "noise": self.noise, "vocab_size": self.vocab_size}
        if config.order != "chain":
            data = self.data_conditionals(config.keep_or_replace)
            result = denoise_in_any_order(data, self.chain, tokens, config, **options)
        elif config.event_driven:
            result = denoise_by_events(self.all_conditionals(frozen), self.chain, tokens, config, **options)
        else:
            result = denoise(self.conditionals(frozen), self.chain, tokens, config, **options)
        return replace(result, vocabulary=self.vocabulary)


def keep_prob_seen(chain: Chain, positions: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Keep probabilities of the tokens that a step of the reverse process sees, float64 [B, L].

    Parameters
    ----------
    chain : Chain
        The chain.
    positions : torch.Tensor
        Positions of the visits to undo, int64 [B, K], all of one sweep.
    times : torch.Tensor
        Time t that they lead back to, int64 [B].

    Returns
    -------
    torch.Tensor
        Those of X_t but at `positions`, which have been visited since.
    """
    ends = (torch.div(times, chain.length, rounding_mode="floor") + 1) * chain.length
    visited = chain.keep_prob(ends.clamp_max(chain.steps)).gather(1, positions)
    return chain.keep_prob(times).scatter(1, positions, visited)
