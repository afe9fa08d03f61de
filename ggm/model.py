"""`GGM`: chain, network and loss in one module that trains, samples and infills."""

from __future__ import annotations

import pickle
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from ggm.arguments import check_data, check_given, sample_ids_of
from ggm.backbones import HollowTransformer, make_backbone
from ggm.chain import Chain
from ggm.draws import integers, uniforms
from ggm.hub import HubWeights, check_finite
from ggm.model_config import GGMConfig
from ggm.objective import (
    Visits,
    loss_from_hidden,
    loss_from_logits,
    weighted_candidates,
)
from ggm.sampling.config import SamplingConfig
from ggm.sampling.event_driven import AllConditionals, denoise_by_events
from ggm.sampling.steps import Conditionals, LinearLogits
from ggm.sampling.stepwise import SampleResult, denoise, initial_tokens
from ggm_kernels import NoiseLaw, Stream, corrupt


class GGM(nn.Module, HubWeights):
    """A Glauber generative model.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of the Hugging Face Hub
    (`ggm.hub`); `save` and `load` need no package but torch.

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
        # Two noise coordinates per training step: X_t, and what the loss draws on top of it.
        noise_step, loss_step = 2 * step, 2 * step + 1
        times, steps = self._draw_visits(sample_ids, seed, step)
        positions, noise_rate = self.chain.visits(steps)
        frozen = self._draw_frozen(sample_ids, positions, seed, step)
        keep_prob = self._keep_prob(times, frozen)
        noisy = self._noised(tokens, keep_prob, seed, noise_step, sample_ids, frozen)
        visits = Visits(
            sample_ids=sample_ids,
            data=tokens.gather(1, positions),
            current=noisy.gather(1, positions),
            keep_prob=keep_prob.gather(1, positions),
            noise_rate=noise_rate,
        )
        candidates = weighted_candidates(
            self.config.objective,
            visits,
            self.config.vocab_size,
            seed=seed,
            step=loss_step,
            noise=self.noise,
        )
        hidden = self.backbone(noisy, positions, times / self.chain.steps, keep_prob).flatten(0, 1)
        weight, bias = self.backbone.head_weight, self.backbone.head_bias
        if self.config.objective.sums_vocabulary:
            losses = loss_from_logits(linear(hidden, weight, bias), candidates, self.noise)
        else:
            losses = loss_from_hidden(hidden, weight, bias, candidates, self.noise)
        if frozen is not None:  # the chain never visits them: nothing to learn there
            losses = losses.masked_fill(frozen.gather(1, positions).flatten(), 0.0)
        return losses.mean()

    # What wrappers call: with DistributedDataParallel the loss is that of the wrapper itself.
    forward = loss

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
            return SampleResult(tokens, 0, 0, 0.0)
        options |= {"frozen": frozen, "noise": self.noise, "vocab_size": self.config.vocab_size}
        if config.event_driven:
            return denoise_by_events(self.all_conditionals(frozen), self.chain, tokens, config, **options)
        return denoise(self.conditionals(frozen), self.chain, tokens, config, **options)

    def conditionals(self, frozen: torch.Tensor | None = None) -> Conditionals:
        """Logits of the network as `ggm.sampling.stepwise.denoise` takes them, given clean positions."""

        def conditionals(
            tokens: torch.Tensor, positions: torch.Tensor, time: int | torch.Tensor
        ) -> LinearLogits:
            times = torch.as_tensor(time, device=tokens.device).expand(tokens.shape[0])
            positions = positions.expand(tokens.shape[0], -1)
            if frozen is not None:  # a masked network must be shown what is given: no use to predict it
                positions = torch.where(frozen.gather(1, positions), positions[:, :1], positions)
            hidden = self.backbone(
                tokens,
                positions,
                times / self.chain.steps,
                self._keep_prob(times, frozen),
            )
            return LinearLogits(hidden, self.backbone.head_weight, self.backbone.head_bias)

        return conditionals

    def all_conditionals(self, frozen: torch.Tensor | None = None) -> AllConditionals:
        """Logits at all positions as `ggm.sampling.event_driven` takes them, given clean positions.

        Raises
        ------
        ValueError
            If the network is not hollow: a masked one does not give all conditionals at once.
        """
        backbone = self.backbone
        if not isinstance(backbone, HollowTransformer):
            raise ValueError("event_driven: got a masked network; allowed: with a hollow one")

        def conditionals(tokens: torch.Tensor, times: torch.Tensor) -> LinearLogits:
            hidden = backbone(tokens, None, times / self.chain.steps, self._keep_prob(times, frozen))
            return LinearLogits(hidden, backbone.head_weight, backbone.head_bias)

        return conditionals

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
        keep_prob = self._keep_prob(times, None)
        noisy = self._noised(tokens, keep_prob, seed, 0, sample_ids)
        positions, _ = self.chain.visits(steps)
        hidden = self.backbone(noisy, positions, times / self.chain.steps, keep_prob)
        weight, bias = self.backbone.head_weight, self.backbone.head_bias
        with torch.autocast(hidden.device.type, enabled=False):  # a sum of V exponentials: no half precision
            return linear(hidden[:, 0].float(), weight.float(), bias.float()).exp().sum(dim=-1)

    def save(self, path: str | PathLike[str]) -> None:
        """Write configuration and weights to one file; `save_pretrained` keeps `training_weights`, too."""
        torch.save({"config": self.config.to_dict(), "weights": self.state_dict()}, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> GGM:
        """Model from a file of `save`, on the CPU.

        Raises
        ------
        OSError, ValueError
            If it cannot be read, is no such file, or a weight is not finite.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            model = cls(GGMConfig.from_dict(saved["config"]))
            model.load_state_dict(saved["weights"])
        except (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError) as error:
            raise ValueError(f"{path}: not a file of GGM.save") from error
        check_finite(model.state_dict(), path)
        return model

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GGM:
        """Model of a configuration as `GGMConfig.to_dict` gives it, with new weights."""
        return cls(GGMConfig.from_dict(config))

    def _draw_visits(
        self, sample_ids: torch.Tensor, seed: int, step: int, count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chain times t [B] and the K visits to be predicted from X_t, all in one sweep, as steps [B, K].

        A masked network predicts the group t .. t + K - 1, as in sampling. A hollow network may predict
        any position from any X_t: t is every step alike, its group goes on at the start of the sweep.
        """
        counts = self.config.masked_counts
        sites = counts[step % len(counts)] if count is None else count
        draws = uniforms(sample_ids, 2, stream=Stream.TIME, seed=seed, step=step)
        length, hollow = self.chain.length, isinstance(self.backbone, HollowTransformer)
        start = integers(draws[:, 0], self.chain.sweeps) * length
        first = integers(draws[:, 1], length if hollow else length - sites + 1)
        group = (first[:, None] + torch.arange(sites, device=first.device)) % length
        return start + first, start[:, None] + group

    def _draw_frozen(
        self, sample_ids: torch.Tensor, positions: torch.Tensor, seed: int, step: int
    ) -> torch.Tensor | None:
        """Clean positions: in some sequences, a random share of those that need not be predicted.

        A hollow network is shown all positions that it predicts, so that of these, too, some may be
        clean: all but the one that step t visits.
        """
        if self.config.frozen_share == 0:
            return None
        length = self.chain.length
        draws = uniforms(sample_ids, length + 2, stream=Stream.FROZEN, seed=seed, step=step)
        conditional = draws[:, length] < self.config.frozen_share
        share = conditional * draws[:, length + 1]
        if isinstance(self.backbone, HollowTransformer):
            positions = positions[:, :1]
        return (draws[:, :length] < share[:, None]).scatter(1, positions, False)

    def _keep_prob(self, times: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        keep_prob = self.chain.keep_prob(times)
        return keep_prob if frozen is None else keep_prob.masked_fill(frozen, 1.0)

    def _noised(
        self,
        tokens: torch.Tensor,
        keep_prob: torch.Tensor,
        seed: int,
        step: int,
        sample_ids: torch.Tensor,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """X_t of data X_0 [B, L], which keeps each position with its probability [B, L]."""
        coordinates: dict[str, Any] = {"seed": seed, "step": step, "sample_ids": sample_ids}
        noisy, _ = corrupt(
            tokens, keep_prob.float(), self.config.vocab_size, frozen=frozen, noise=self.noise, **coordinates
        )
        return noisy

    def _initial(self, sample_ids: torch.Tensor, seed: int) -> torch.Tensor:
        return initial_tokens(
            sample_ids, self.chain.length, self.config.vocab_size, seed=seed, noise=self.noise
        )

    def _sample_ids(self, count: int, sample_ids: torch.Tensor | None) -> torch.Tensor:
        return sample_ids_of(count, sample_ids, self.backbone.head_bias)
