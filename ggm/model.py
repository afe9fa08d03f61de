"""`GGM`: chain, network and loss in one module that trains, samples and infills."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ggm.arguments import check_data, check_given, sample_ids_of
from ggm.backbones import make_backbone
from ggm.chain import Chain
from ggm.draws import integers, uniforms
from ggm.hub import HubWeights
from ggm.model_config import GGMConfig
from ggm.objective import Predictions, Visits
from ggm.sampling.config import SamplingConfig
from ggm.sampling.event_driven import AllConditionals, denoise_by_events
from ggm.sampling.steps import Conditionals, LinearLogits
from ggm.sampling.stepwise import SampleResult, denoise, initial_tokens
from ggm_kernels import NoiseLaw, Stream, corrupt


class GGM(nn.Module, HubWeights):
    """A Glauber generative model.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of the Hugging Face Hub
    (`ggm.hub`); the first two need safetensors alone.

    Parameters
    ----------
    config : GGMConfig
        Everything but the weights, which start random (`torch.manual_seed`).

    Examples
    --------
    A training step (docs/training.md has the whole loop):

    >>> import torch
    >>> from ggm import GGM, ChainConfig, GGMConfig
    >>> model = GGM(GGMConfig(vocab_size=5, chain=ChainConfig(length=8)))
    >>> model.loss(torch.randint(5, (2, 8)), seed=0, step=0).backward()
    """

    def __init__(self, config: GGMConfig) -> None:
        super().__init__()
        self.config = config
        self.chain = Chain.from_config(config.chain)
        self.backbone = make_backbone(config.backbone, config.vocab_size, config.chain.length)
        self.noise = None
        if config.noise_probs is not None:
            self.noise = NoiseLaw(torch.tensor(config.noise_probs, dtype=torch.float64))

    def loss(
        self,
        tokens: torch.Tensor,
        seed: int,
        step: int,
        sample_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean training loss of a batch, at chain times drawn for each sequence.

        Parameters
        ----------
        tokens : torch.Tensor
            Data x0, int64 [B, L].
        seed, step : int
            Coordinates of all draws: `step` is the training step, at most 2**31 - 1.
        sample_ids : torch.Tensor, optional
            Coordinate of each sequence, int64 [B]; default 0, 1, .., B - 1. With ids of the data
            set a sequence meets the same noise in any batch, order or process.

        Returns
        -------
        torch.Tensor
            float32 scalar, differentiable in the parameters.

        Raises
        ------
        TypeError, ValueError, IndexError
            If the tokens are not integers of shape [B, L], B at least 1, or out of range (on CPU, and on GPU
            if GGM_KERNELS_CHECK=1).
        """
        check_data(tokens, self.chain.length, self.backbone.head_bias)
        sample_ids = self._sample_ids(len(tokens), sample_ids)
        times, steps = self._draw_visits(sample_ids, seed, step)
        positions, _ = self.chain.visits(steps)
        frozen = self._draw_frozen(sample_ids, positions, seed, step)
        coordinates: dict[str, Any] = {"seed": seed, "step": step, "sample_ids": sample_ids}
        predictions = self.predictions(tokens, times, steps, frozen=frozen, **coordinates)
        losses = predictions.losses(self.config.objective)
        if frozen is not None:  # the chain never visits them: nothing to learn there
            losses = losses.masked_fill(frozen.gather(1, positions).flatten(), 0.0)
        return losses.mean()

    # What wrappers call: with DistributedDataParallel the loss is that of the wrapper itself.
    forward = loss

    def predictions(
        self,
        tokens: torch.Tensor,
        times: torch.Tensor,
        steps: torch.Tensor,
        *,
        seed: int,
        step: int,
        sample_ids: torch.Tensor,
        frozen: torch.Tensor | None = None,
    ) -> Predictions:
        """Noise data, and predict the tokens that visits of the chain find in it.

        Parameters
        ----------
        tokens : torch.Tensor
            Data x0, int64 [B, L].
        times : torch.Tensor
            Chain time t of each sequence, int64 [B].
        steps : torch.Tensor
            Visits whose positions are predicted from X_t, as steps of the chain, int64 [B, K].
        seed, step, sample_ids
            Coordinates of all draws, as in `loss`.
        frozen : torch.Tensor, optional
            bool [B, L]: positions without noise.

        Returns
        -------
        Predictions
            R = B * K rows. Loss, calibration and evaluation are made of them.
        """
        positions, noise_rate = self.chain.visits(steps)
        keep_prob = self._keep_prob(times, frozen)
        # Two noise coordinates per step: X_t, and what a loss draws on top of it.
        noisy, _ = corrupt(
            tokens,
            keep_prob.float(),
            self.config.vocab_size,
            seed=seed,
            step=2 * step,
            sample_ids=sample_ids,
            frozen=frozen,
            noise=self.noise,
        )
        visits = Visits(
            sample_ids=sample_ids,
            data=tokens.gather(1, positions),
            current=noisy.gather(1, positions),
            keep_prob=keep_prob.gather(1, positions),
            noise_rate=noise_rate,
        )
        hidden = self._logits(noisy, positions, times, keep_prob).hidden.flatten(0, 1)
        weight, bias = self.backbone.head_weight, self.backbone.head_bias
        return Predictions(visits, hidden, weight, bias, self.noise, seed, 2 * step + 1)

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
            `progress` and, unless event-driven, `observe` of `ggm.sampling.stepwise.denoise`.

        Returns
        -------
        SampleResult
            Tokens int64 [count, L], network evaluations, site updates, seconds.

        Raises
        ------
        TypeError, ValueError
            If the count is negative, there are not as many ids, or the configuration is event-driven and
            the network is not hollow.
        """
        ids = self._sample_ids(count, sample_ids)
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
        weights = self.backbone.head_bias
        check_given(tokens, frozen, self.chain.length, self.config.vocab_size, weights)
        ids = self._sample_ids(len(tokens), sample_ids)
        start = torch.where(frozen, tokens, self._initial(ids, seed))
        return self._denoise(start, config, frozen, seed=seed, sample_ids=ids, **options)

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
        options |= {"frozen": frozen, "noise": self.noise, "vocab_size": self.config.vocab_size}
        if config.event_driven:
            result = denoise_by_events(self.all_conditionals(frozen), self.chain, tokens, config, **options)
        else:
            result = denoise(self.conditionals(frozen), self.chain, tokens, config, **options)
        return replace(result, vocabulary=self.vocabulary)

    def conditionals(self, frozen: torch.Tensor | None = None) -> Conditionals:
        """Logits of the network as `ggm.sampling.stepwise.denoise` takes them, given clean positions."""

        def conditionals(
            tokens: torch.Tensor, positions: torch.Tensor, time: int | torch.Tensor
        ) -> LinearLogits:
            times = torch.as_tensor(time, device=tokens.device).expand(tokens.shape[0])
            positions = positions.expand(tokens.shape[0], -1)
            if frozen is not None:  # a masked network must be shown what is given: no use to predict it
                positions = torch.where(frozen.gather(1, positions), positions[:, :1], positions)
            return self._logits(tokens, positions, times, self._keep_prob(times, frozen))

        return conditionals

    def all_conditionals(self, frozen: torch.Tensor | None = None) -> AllConditionals:
        """Logits at all positions as `ggm.sampling.event_driven` takes them, given clean positions.

        Raises
        ------
        ValueError
            If the network does not give all conditionals at once, as a masked one.
        """
        if not self.config.backbone.gives_all_conditionals:
            raise ValueError(
                f"event_driven: got a {self.config.backbone.kind} network; allowed: with a hollow one"
            )

        def conditionals(tokens: torch.Tensor, times: torch.Tensor) -> LinearLogits:
            return self._logits(tokens, None, times, self._keep_prob(times, frozen))

        return conditionals

    def _logits(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        times: torch.Tensor,
        keep_prob: torch.Tensor,
    ) -> LinearLogits:
        """Logits of the network at some positions [B, K] of X_t, or at all, as factors."""
        hidden = self.backbone(tokens, positions, times / self.chain.steps, keep_prob)
        return LinearLogits(hidden, self.backbone.head_weight, self.backbone.head_bias)

    @torch.inference_mode()
    def calibration(
        self, tokens: torch.Tensor, seed: int, sample_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum over the vocabulary of exp g, which is 1 for the exact conditionals.

        Parameters
        ----------
        tokens : torch.Tensor
            Data, int64 [B, L]; noised at a chain time drawn for each sequence.
        seed : int
            Key of the draws.
        sample_ids : torch.Tensor, optional
            Coordinate of each sequence, int64 [B]; default 0, 1, .., B - 1.

        Returns
        -------
        torch.Tensor
            float32 [B]: the sum at one visited position of each sequence.
        """
        check_data(tokens, self.chain.length, self.backbone.head_bias)
        sample_ids = self._sample_ids(len(tokens), sample_ids)
        times, steps = self._draw_visits(sample_ids, seed, step=0, count=1)
        return self.predictions(tokens, times, steps, seed=seed, step=0, sample_ids=sample_ids).calibration()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GGM:
        """Model of a configuration as `GGMConfig.to_dict` gives it, with new weights."""
        return cls(GGMConfig.from_dict(config))

    def _draw_visits(
        self, sample_ids: torch.Tensor, seed: int, step: int, count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chain times t [B] and the K visits to be predicted from X_t, all in one sweep, as steps [B, K].

        A masked network predicts the group t .. t + K - 1, as in sampling. One that gives all conditionals
        may predict any position from any X_t: t is every step alike, its group goes on at the start of the
        sweep.
        """
        counts = self.config.masked_counts
        sites = counts[step % len(counts)] if count is None else count
        draws = uniforms(sample_ids, 2, stream=Stream.TIME, seed=seed, step=step)
        length, any_order = self.chain.length, self.config.backbone.gives_all_conditionals
        start = integers(draws[:, 0], self.chain.sweeps) * length
        first = integers(draws[:, 1], length if any_order else length - sites + 1)
        group = (first[:, None] + torch.arange(sites, device=first.device)) % length
        return start + first, start[:, None] + group

    def _draw_frozen(
        self, sample_ids: torch.Tensor, positions: torch.Tensor, seed: int, step: int
    ) -> torch.Tensor | None:
        """Clean positions: in some sequences, a random share of those that need not be predicted.

        A network that gives all conditionals is shown all positions that it predicts, so that of these, too,
        some may be clean: all but the one that step t visits.
        """
        if self.config.frozen_share == 0:
            return None
        length = self.chain.length
        draws = uniforms(sample_ids, length + 2, stream=Stream.FROZEN, seed=seed, step=step)
        conditional = draws[:, length] < self.config.frozen_share
        share = conditional * draws[:, length + 1]
        if self.config.backbone.gives_all_conditionals:
            positions = positions[:, :1]
        return (draws[:, :length] < share[:, None]).scatter(1, positions, False)

    def _keep_prob(self, times: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        keep_prob = self.chain.keep_prob(times)
        return keep_prob if frozen is None else keep_prob.masked_fill(frozen, 1.0)

    def _initial(self, sample_ids: torch.Tensor, seed: int) -> torch.Tensor:
        return initial_tokens(
            sample_ids, self.chain.length, self.config.vocab_size, seed=seed, noise=self.noise
        )

    def _sample_ids(self, count: int, sample_ids: torch.Tensor | None) -> torch.Tensor:
        return sample_ids_of(count, sample_ids, self.backbone.head_bias)
