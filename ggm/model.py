"""`GGM`: chain, network and loss in one module that trains, samples and infills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ggm.arguments import check_data, sample_ids_of
from ggm.backbones import make_backbone
from ggm.chain import Chain
from ggm.draws import integers, uniforms
from ggm.hub import HubWeights
from ggm.mixture import leave_one_out_shift, noise_probs
from ggm.model_config import GGMConfig
from ggm.objective import Visits
from ggm.predictions import Predictions
from ggm.sampling.any_order import DataConditionals
from ggm.sampling.event_driven import AllConditionals
from ggm.sampling.sampler import Sampler, keep_prob_seen
from ggm.sampling.steps import Conditionals, DataPrediction, LinearLogits, Prediction, times_of
from ggm_kernels import NoiseLaw, Stream, corrupt


class _Looks(NamedTuple):
    """What a training step looks at: the K visits of each sequence, and what is clean."""

    times: torch.Tensor  # [B]
    steps: torch.Tensor  # [B, K]
    frozen: torch.Tensor | None  # [B, L]
    counts: torch.Tensor | None  # [B * K]: rows whose loss is not taken for 0; None is all


class GGM(nn.Module, Sampler, HubWeights):
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
        config.check_noise()
        self.config, self.vocab_size = config, config.vocab_size
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

        Of a network that is shown clean positions among those that it predicts (`frozen_share`) it is a
        mean with zeros: divided by `counted_share` it is the loss per predicted token.

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
        coordinates: dict[str, Any] = {"seed": seed, "step": step, "sample_ids": sample_ids}
        looks = self._draw_looks(**coordinates)
        predictions = self.predictions(tokens, looks.times, looks.steps, frozen=looks.frozen, **coordinates)
        return predictions.mean_loss(self.config.objective, looks.counts)

    # What wrappers call: with DistributedDataParallel the loss is that of the wrapper itself.
    forward = loss

    def counted_share(self, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """Share of the rows that `loss` is the mean of whose own loss is not taken for 0.

        Parameters
        ----------
        seed, step : int
            As of `loss`.
        sample_ids : torch.Tensor
            As of `loss`.

        Returns
        -------
        torch.Tensor
            float32 scalar, above 0: rows of positions that are not clean. Shares of batches of one size
            have for mean that of them together.
        """
        counts = None
        # What a masked network predicts is not clean.
        if self.config.backbone.gives_all_conditionals and self.config.frozen_share > 0:
            counts = self._draw_looks(seed=seed, step=step, sample_ids=sample_ids).counts
        return torch.ones((), device=sample_ids.device) if counts is None else counts.float().mean()

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
        now: torch.Tensor | None = None,
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
        now : torch.Tensor, optional
            Of a denoiser: time of the tokens that it is shown, int64 [B], after `times` and in the same
            sweep, since tokens that are surely data would teach it to copy. Default t + 1.

        Returns
        -------
        Predictions
            R = B * K rows. Loss, calibration and evaluation are made of them.
        """
        positions, noise_rate = self.chain.visits(steps)
        keep_prob = seen = self._keep_prob(times, frozen)
        if self.config.backbone.sees_own_token:
            seen = self._keep_prob(times + 1 if now is None else now, frozen)
        # Two noise coordinates per step: X_t, and what a loss draws on top of it.
        noisy, _ = corrupt(
            tokens,
            seen.float(),
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
        hidden = self._logits(noisy, positions, times, seen).hidden
        weight, bias = self.backbone.head_weight, self.backbone.head_bias
        shift = None
        if self.config.backbone.sees_own_token:
            shift = self._shift(visits.current, seen.gather(1, positions)).flatten()
        return Predictions(
            visits,
            hidden.flatten(0, 1),
            weight,
            bias,
            self.noise,
            seed,
            2 * step + 1,
            self.config.predicts,
            shift,
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GGM:
        """Move or cast: what was the average of `training_weights` stays that."""
        training = self.training_weights
        super()._apply(fn, recurse)
        self.training_weights = training
        return self

    @property
    def weights(self) -> torch.Tensor:
        """A tensor on the device where tokens must be."""
        return self.backbone.head_bias

    def conditionals(self, frozen: torch.Tensor | None = None) -> Conditionals:
        """Predictions of the network as `ggm.sampling.stepwise.denoise` takes them, given clean positions."""

        def conditionals(
            tokens: torch.Tensor,
            positions: torch.Tensor,
            time: int | torch.Tensor,
            *,
            visited: bool = True,
        ) -> Prediction:
            times = times_of(time, tokens)
            positions = positions.expand(tokens.shape[0], -1)
            if frozen is not None:  # a masked network must be shown what is given: no use to predict it
                positions = torch.where(frozen.gather(1, positions), positions[:, :1], positions)
            keep_prob = seen = self._keep_prob(times, frozen)
            if visited and self.config.backbone.sees_own_token:
                seen = _clean(keep_prob_seen(self.chain, positions, times), frozen)
            return self._predict(tokens, positions, times, keep_prob, seen)

        return conditionals

    def all_conditionals(self, frozen: torch.Tensor | None = None) -> AllConditionals:
        """Predictions at all positions as `ggm.sampling.event_driven` takes them, given clean positions.

        Raises
        ------
        ValueError
            If the network does not give all conditionals at once, as a masked one.
        """
        if not self.config.backbone.gives_all_conditionals:
            raise ValueError(
                f"event_driven: got a {self.config.backbone.kind} network; "
                "allowed: with a hollow one or a denoiser"
            )

        def conditionals(tokens: torch.Tensor, times: torch.Tensor, now: torch.Tensor) -> Prediction:
            keep_prob = seen = self._keep_prob(times, frozen)
            if self.config.backbone.sees_own_token:
                seen = self._keep_prob(now, frozen)
            return self._predict(tokens, None, times, keep_prob, seen)

        return conditionals

    def data_conditionals(self, keep_or_replace: bool = False) -> DataConditionals:
        """Predictions of the data at all positions, as `ggm.sampling.any_order` takes them.

        Parameters
        ----------
        keep_or_replace : bool
            Whether the token that stands at a position tells of it, too.

        Raises
        ------
        ValueError
            If the network does not give all conditionals at once, or does not predict the data.
        """
        network, predicts = self.config.backbone, self.config.predicts
        if not network.gives_all_conditionals or predicts != "data":
            raise ValueError(
                f"order: got one for a {network.kind} network that predicts the {predicts}; "
                "allowed: chain, or a hollow network or a denoiser that predicts the data"
            )

        def conditionals(tokens: torch.Tensor, times: torch.Tensor, given: torch.Tensor) -> DataPrediction:
            keep_prob = self._keep_prob(times, given)
            logits = self._logits(tokens, None, times, keep_prob)
            shift = None
            if network.sees_own_token != keep_or_replace:
                taken_out = self._shift(tokens, keep_prob)
                shift = -taken_out if keep_or_replace else taken_out
            return DataPrediction(logits, torch.ones_like(keep_prob), shift)

        return conditionals

    def _predict(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        times: torch.Tensor,
        keep_prob: torch.Tensor,
        seen: torch.Tensor,
    ) -> Prediction:
        """The distribution of X_t at some positions [B, K], or at all, from tokens that the network sees.

        `keep_prob` is that of X_t, `seen` that of the tokens, both [B, L].
        """
        logits = self._logits(tokens, positions, times, seen)
        if self.config.predicts == "state":
            return logits
        if positions is not None:
            tokens, keep_prob, seen = (values.gather(1, positions) for values in (tokens, keep_prob, seen))
        shift = self._shift(tokens, seen) if self.config.backbone.sees_own_token else None
        return DataPrediction(logits, keep_prob, shift)

    def _shift(self, tokens: torch.Tensor, keep_prob: torch.Tensor) -> torch.Tensor:
        """What takes out of a denoiser's prediction what each token tells of its own position, [B, K]."""
        return leave_one_out_shift(keep_prob, noise_probs(self.noise, tokens, self.vocab_size))

    def _logits(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        times: torch.Tensor,
        keep_prob: torch.Tensor,
    ) -> LinearLogits:
        """Logits of the network at some positions [B, K], or at all, as factors."""
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

    def _draw_looks(self, *, seed: int, step: int, sample_ids: torch.Tensor) -> _Looks:
        """Draw what a training step looks at in each sequence."""
        times, steps = self._draw_visits(sample_ids, seed, step)
        positions, _ = self.chain.visits(steps)
        frozen = self._draw_frozen(sample_ids, positions, seed, step)
        # The chain never visits frozen ones: nothing to learn there.
        counts = None if frozen is None else ~frozen.gather(1, positions).flatten()
        return _Looks(times, steps, frozen, counts)

    def _draw_visits(
        self, sample_ids: torch.Tensor, seed: int, step: int, count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chain times t [B] and the K visits to be predicted from X_t, all in one sweep, as steps [B, K].

        A masked network predicts the group t .. t + K - 1, as in sampling. One that gives all conditionals
        may predict any position from any X_t: t is every step alike, its group goes on at the start of the
        sweep. With `count`, which is not for training, all sweeps are alike whatever `training_times` says.
        """
        counts = self.config.masked_counts
        sites = counts[step % len(counts)] if count is None else count
        draws = uniforms(sample_ids, 2, stream=Stream.TIME, seed=seed, step=step)
        length, any_order = self.chain.length, self.config.backbone.gives_all_conditionals
        if count is None and self.config.training_times == "kept":
            start = self.chain.sweeps_by_kept(draws[:, 0]) * length
        else:
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
        return _clean(self.chain.keep_prob(times), frozen)

    def _sample_ids(self, count: int, sample_ids: torch.Tensor | None) -> torch.Tensor:
        return sample_ids_of(count, sample_ids, self.backbone.head_bias)


def _clean(keep_prob: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
    """Keep probabilities [B, L], 1 at positions that are given."""
    return keep_prob if frozen is None else keep_prob.masked_fill(frozen, 1.0)
