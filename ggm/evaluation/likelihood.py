"""The likelihood of held-out data: a bound of -log p(data) in nats per token, bits and perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ggm.arguments import check_data
from ggm.chain import Chain
from ggm.evaluation.bound import (
    LogModel,
    Noise,
    Site,
    divergence_from_data,
    prior_divergence,
    step_bound,
)
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.log_conditionals import SUMMED_VOCABULARY, LogConditionals, log_conditionals
from ggm.evaluation.statistics import standard_error
from ggm.evaluation.times import EvenTimes
from ggm.model import GGM
from ggm.processes import ALONE, Processes
from ggm.sampling.steps import Conditionals, DataPrediction
from ggm.sampling.visits import OwnVisits
from ggm_kernels import NoiseLaw, Stream, random_tokens

# Draws of the noise that stand for a vocabulary too long to be summed over.
_DRAWS = 16


@torch.inference_mode()
def chain_bound(
    conditionals: Conditionals,
    chain: Chain,
    tokens: torch.Tensor,
    config: LikelihoodConfig,
    *,
    vocab_size: int,
    noise: NoiseLaw | None = None,
    frozen: torch.Tensor | None = None,
    sample_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unbiased estimates of the bound of -log p(x0), for each sequence.

    Parameters
    ----------
    conditionals : Conditionals
        P(X_{t,i} = . | X_{t,-i}) as logits, which must not depend on the token at i, or as a prediction of
        the data, which may if it has a `logit_shift`; called with positions [B, K] and times [B].
    chain : Chain
        Visit order and noise rates.
    tokens : torch.Tensor
        Data x0, int64 [B, L].
    config : LikelihoodConfig
        How many times and sites, and the seed. All sequences are looked at together.
    vocab_size : int
        V.
    noise : NoiseLaw, optional
        pi; None is uniform.
    frozen : torch.Tensor, optional
        bool [B, L]: given positions. The bound is then that of the others given these.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence's noise, int64 [B]; default 0, 1, .., B - 1. With them an estimate does
        not depend on the batch that the sequence is in.

    Returns
    -------
    torch.Tensor
        Nats, float64 [B] on the CPU: the prior's divergence, plus the sum over all groups of visits of the
        divergences of their steps. At least -log p(x0) on average, whatever the conditionals are; with
        exact ones, one site at a time, its mean over the data is the entropy, plus the divergence of X_T
        from pi^L.

    Notes
    -----
    Source: our own derivation (docs/mathematics.md).
    """
    ids = torch.arange(len(tokens)) if sample_ids is None else sample_ids.cpu()
    law = Noise(noise, vocab_size)
    return _Batch(conditionals, chain, tokens, ids, frozen, law, config).bound()


@dataclass(frozen=True)
class _Batch:
    """Sequences that are looked at together."""

    conditionals: Conditionals
    chain: Chain
    tokens: torch.Tensor
    ids: torch.Tensor  # their sample ids, on the CPU
    frozen: torch.Tensor | None
    noise: Noise
    config: LikelihoodConfig

    def bound(self) -> torch.Tensor:
        """Nats of each sequence, float64 [B]."""
        total = torch.zeros(len(self.ids), dtype=torch.float64)
        if len(self.ids) == 0:
            return total
        own = OwnVisits.of(self.chain, self.frozen)
        groups = self.chain.sweeps * -(-own.counts.expand(len(self.ids)) // self.config.sites_per_step)
        times = EvenTimes.of(self.ids, groups, self.config.times, seed=self.config.seed)
        for number in range(times.looks):
            visits = _visits(own, times.at(number), self.config.sites_per_step)
            steps, is_visited = (part.to(self.tokens.device) for part in visits)
            terms = self._terms(steps, number).masked_fill(~is_visited, 0.0).sum(dim=1)
            total += terms.cpu() * times.weights
        last = self._keep_prob(torch.full((len(self.ids),), self.chain.steps, device=self.tokens.device))
        per_site = prior_divergence(last, self.tokens, self.noise)
        if self.frozen is not None:
            per_site = per_site.masked_fill(self.frozen, 0.0)
        return total + per_site.sum(dim=1).cpu()

    def _keep_prob(self, times: torch.Tensor) -> torch.Tensor:
        keep_prob = self.chain.keep_prob(times)
        return keep_prob if self.frozen is None else keep_prob.masked_fill(self.frozen, 1.0)

    def _terms(self, steps: torch.Tensor, number: int) -> torch.Tensor:
        """Terms of the bound of a group of visits, float64 [B, K] as `steps`."""
        ids, times = self.ids.to(steps.device), steps[:, 0]
        positions, rate = self.chain.visits(steps)
        keep_prob = self._keep_prob(times)
        site = Site(
            self.tokens.gather(1, positions).flatten(),
            keep_prob.gather(1, positions).flatten(),
            rate.flatten(),
        )
        # The state that the sampler sees: every site of the group has been visited.
        after = keep_prob.scatter(1, positions, keep_prob.gather(1, positions) * (1.0 - rate))
        noisy = self.noise.corrupt(self.tokens, after, seed=self.config.seed, step=number, sample_ids=ids)
        given = self.conditionals(noisy, positions, times)
        current = noisy.gather(1, positions)
        model = log_conditionals(given, current, self.noise)
        draws = self._draws(ids, positions.shape[1], number)
        if isinstance(given, DataPrediction) and given.logit_shift is not None:
            current = current.view(-1, 1)  # the token of X_{t+1}, which the model has seen
            divergence = _divergence(site, model, draws, self.noise)
            terms = step_bound(site, current, model.at(current), divergence, self.noise)
        else:
            terms = expected_step_bound(site, model, draws, self.noise)
        return terms.view(positions.shape)

    def _draws(self, ids: torch.Tensor, sites: int, number: int) -> Draws:
        """What stands for pi: the whole vocabulary where it is short, else two sets of draws."""
        rows, vocab_size = len(ids) * sites, self.noise.vocab_size
        if vocab_size <= SUMMED_VOCABULARY:
            tokens = torch.arange(vocab_size, device=ids.device).expand(rows, -1)
            return Draws(tokens, self.noise.probs.to(ids.device).expand(rows, -1), tokens[:, :0])
        tokens = random_tokens(
            ids,
            sites * 2 * _DRAWS,
            vocab_size,
            stream=Stream.CANDIDATES,
            seed=self.config.seed,
            step=number,
            noise=self.noise.law,
        ).view(rows, 2 * _DRAWS)
        replacing, others = tokens.chunk(2, dim=1)
        return Draws(replacing, torch.full_like(replacing, 1.0 / _DRAWS, dtype=torch.float64), others)


def _visits(own: OwnVisits, index: torch.Tensor, sites: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Group number `index` [B] of each sequence, counted from time 0: steps, and which of them it has.

    Both are [B, sites]; a sequence that has fewer visits has the first one again.
    """
    rows = len(index)
    of_row = torch.arange(rows) if len(own.counts) > 1 else torch.zeros(rows, dtype=torch.int64)
    counts = own.counts[of_row]
    per_sweep = (-(-counts // sites)).clamp_min(1)  # a sequence without visits has no group that counts
    first = index % per_sweep * sites
    places = first[:, None] + torch.arange(sites)
    is_visited = places < counts[:, None]
    places = torch.where(is_visited, places, first[:, None])
    steps = own.steps[(index // per_sweep)[:, None], of_row[:, None], places]
    return steps, is_visited


class Draws(NamedTuple):
    """Tokens that stand for pi at R rows.

    Attributes
    ----------
    tokens, share : torch.Tensor
        Tokens that may replace the one that is there, and their weights, [R, C].
    others : torch.Tensor
        Independent draws for means that have no closed form, [R, C'], equally weighted.
    """

    tokens: torch.Tensor
    share: torch.Tensor
    others: torch.Tensor


def _divergence(site: Site, model: LogConditionals, draws: Draws, noise: Noise) -> torch.Tensor:
    """KL(r || m), float64 [R], or an unbiased estimate of it, independent of `draws.tokens`."""
    mean = model.mean()
    if mean is None:
        mean = model.at(draws.others).mean(dim=1)
    return divergence_from_data(site, LogModel(model.at(site.data[:, None])[:, 0], mean), noise)


def expected_step_bound(site: Site, model: LogConditionals, draws: Draws, noise: Noise) -> torch.Tensor:
    """Mean of `step_bound` over the token b of X_{t+1} given the data, for a model that does not see b.

    b is x0 with probability alpha (1 - eps) and drawn from pi otherwise.

    Parameters
    ----------
    site : Site
        R rows.
    model : LogConditionals
        The model.
    draws : Draws
        What stands for pi.
    noise : Noise
        pi.

    Returns
    -------
    torch.Tensor
        float64 [R].
    """
    every = torch.cat([site.data[:, None], draws.tokens], dim=1)
    stays = (site.keep_prob * (1.0 - site.noise_rate))[:, None]
    weights = torch.cat([stays, (1.0 - stays) * draws.share], dim=1)
    terms = step_bound(site, every, model.at(every), _divergence(site, model, draws, noise), noise)
    return torch.where(weights > 0.0, weights * terms, 0.0).sum(dim=1)


def likelihood(
    model: GGM, tokens: torch.Tensor, config: LikelihoodConfig, processes: Processes = ALONE
) -> dict[str, Any]:
    """The likelihood bound of a model on data that it was not trained on.

    Parameters
    ----------
    model : GGM
        The model.
    tokens : torch.Tensor
        Data, int64 [M, L].
    config : LikelihoodConfig
        How closely it is estimated.
    processes : Processes
        Who shares out the batches: all of them call this.

    Returns
    -------
    dict
        ``nats_per_token`` and its ``standard_error`` over sequences, ``bits_per_token``, ``perplexity``, and
        what they are of: ``sequences``, ``times``, ``sites_per_step``, ``chain_steps``, ``seed``.

    Raises
    ------
    TypeError, ValueError
        If tokens are not integers of the model's length, or there are none.
    """
    check_data(tokens, model.chain.length, None)  # batches go to the device of the weights
    device = model.backbone.head_bias.device

    def bound(ids: torch.Tensor) -> torch.Tensor:
        return chain_bound(
            model.conditionals(),
            model.chain,
            tokens[ids].to(device),
            config,
            vocab_size=model.config.vocab_size,
            noise=model.noise,
            sample_ids=ids,
        )

    nats = torch.cat(processes.share_out(torch.arange(len(tokens)).split(config.batch), bound))
    return summary(nats / model.chain.length, config) | {
        "sites_per_step": config.sites_per_step,
        "chain_steps": model.chain.steps,
    }


def summary(nats: torch.Tensor, config: LikelihoodConfig) -> dict[str, Any]:
    """Bounds per token of sequences, float64 [M], as the numbers that are reported."""
    mean = float(nats.mean())
    return {
        "nats_per_token": mean,
        "standard_error": standard_error(nats),
        "bits_per_token": mean / math.log(2.0),
        "perplexity": math.exp(mean) if mean < 700.0 else math.inf,
        "sequences": len(nats),
        "times": config.times,
        "seed": config.seed,
    }
