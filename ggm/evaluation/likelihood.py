"""The likelihood of held-out data: a bound of -log p(data) in nats per token, bits and perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import linear

from ggm.chain import Chain
from ggm.draws import uniforms
from ggm.evaluation.bound import (
    LogModel,
    Noise,
    Site,
    divergence_from_data,
    prior_divergence,
    step_bound,
)
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.statistics import standard_error
from ggm.model import GGM
from ggm.processes import ALONE, Processes
from ggm.sampling.steps import Conditionals, LinearLogits
from ggm.sampling.visits import OwnVisits
from ggm_kernels import NoiseLaw, Stream, corrupt, linear_glauber_step, random_tokens

# Rows of so many tokens are summed over the vocabulary; longer ones are looked at through draws of the noise.
_SUMMED_VOCABULARY = 4096
_DRAWS = 16


class Factored(Protocol):
    """A network's log-conditionals of X_t at R rows."""

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logarithm of m at tokens [R, C]: float64 [R, C]."""
        ...

    def mean(self) -> torch.Tensor:
        """Mean of log m over pi, float64 [R]."""
        ...


class _AllLogits:
    """Log-conditionals from logits [R, V]."""

    def __init__(self, logits: torch.Tensor, noise: Noise) -> None:
        self._log_probs = logits.double().log_softmax(dim=1)
        self._probs = noise.probs.to(logits.device)

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._log_probs.gather(1, tokens)

    def mean(self) -> torch.Tensor:
        # A token that noise never draws may have probability 0.
        return torch.where(self._probs > 0.0, self._probs * self._log_probs, 0.0).sum(dim=1)


class _Products:
    """Log-conditionals from hidden states [R, d] and a head, without all R x V logits at once.

    The mean of the logits over pi is one dot product with the mean row of the head, and the logarithm of the
    sum of their exponentials a by-product of the kernel.
    """

    def __init__(self, given: LinearLogits, noise: Noise) -> None:
        hidden, self._weight, self._bias = given.hidden.flatten(0, 1), given.weight, given.bias
        self._hidden = hidden
        rows = len(hidden)
        self._log_sum_exp = torch.empty(rows, 1, dtype=torch.float32, device=hidden.device)
        linear_glauber_step(
            torch.zeros(rows, 1, dtype=torch.int64, device=hidden.device),
            hidden[:, None],
            self._weight,
            torch.zeros(1, dtype=torch.int64, device=hidden.device),
            bias=self._bias,
            seed=0,
            step=0,
            log_sum_exp=self._log_sum_exp,
        )
        self._probs = noise.probs.to(hidden.device)

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("rd,rcd->rc", self._hidden.double(), self._weight[tokens].double())
        if self._bias is not None:
            logits = logits + self._bias[tokens].double()
        return logits - self._log_sum_exp.double()

    def mean(self) -> torch.Tensor:
        row = self._probs @ self._weight.double()
        offset = 0.0 if self._bias is None else self._probs @ self._bias.double()
        return self._hidden.double() @ row + offset - self._log_sum_exp[:, 0].double()


def log_conditionals(given: torch.Tensor | LinearLogits, noise: Noise) -> Factored:
    """What the bound reads of a network that predicts the conditional of X_t at B x K places."""
    if isinstance(given, torch.Tensor):
        return _AllLogits(given.flatten(0, 1), noise)
    if noise.vocab_size <= _SUMMED_VOCABULARY:
        return _AllLogits(linear(given.hidden.flatten(0, 1), given.weight, given.bias), noise)
    return _Products(given, noise)


@dataclass(frozen=True)
class _Group:
    """One group of visits of each of B sequences, and what the bound needs of it: K places a sequence."""

    steps: torch.Tensor  # int64 [B, K]; the first one again where a sequence has fewer
    is_visited: torch.Tensor  # bool [B, K]

    @classmethod
    def of(cls, own: OwnVisits, rows: int, index: torch.Tensor, sites: int) -> _Group:
        """Group number `index` [B] of each of `rows` = B sequences, counted from time 0."""
        of_row = torch.arange(rows) if len(own.counts) > 1 else torch.zeros(rows, dtype=torch.int64)
        counts = own.counts[of_row]
        per_sweep = (-(-counts // sites)).clamp_min(1)  # a sequence without visits has no group that counts
        first = index % per_sweep * sites
        places = first[:, None] + torch.arange(sites)
        is_visited = places < counts[:, None]
        places = torch.where(is_visited, places, first[:, None])
        steps = own.steps[(index // per_sweep)[:, None], of_row[:, None], places]
        return cls(steps, is_visited)


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
        Logits of P(X_{t,i} = . | X_{t,-i}), which must not depend on the token at i; called with positions
        [B, K] and times [B].
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
        times = min(self.config.times, max(1, int(groups.max())))
        starts = uniforms(self.ids, 1, stream=Stream.TIME, seed=self.config.seed)[:, 0]
        for number in range(times):
            # Evenly spread with a random start: every group is looked at with probability times / groups.
            index = ((number + starts) * groups / times).long().clamp_max((groups - 1).clamp_min(0))
            group = _Group.of(own, len(self.ids), index, self.config.sites_per_step)
            total += self._terms(group, number).cpu() * groups / times
        last = self._keep_prob(torch.full((len(self.ids),), self.chain.steps, device=self.tokens.device))
        per_site = prior_divergence(last, self.tokens, self.noise)
        if self.frozen is not None:
            per_site = per_site.masked_fill(self.frozen, 0.0)
        return total + per_site.sum(dim=1).cpu()

    def _keep_prob(self, times: torch.Tensor) -> torch.Tensor:
        keep_prob = self.chain.keep_prob(times)
        return keep_prob if self.frozen is None else keep_prob.masked_fill(self.frozen, 1.0)

    def _terms(self, group: _Group, number: int) -> torch.Tensor:
        """Sum of the bound's terms over the sites of a group, float64 [B]."""
        device, ids = self.tokens.device, self.ids.to(self.tokens.device)
        steps = group.steps.to(device)
        times = steps[:, 0]
        positions, rate = self.chain.visits(steps)
        keep_prob = self._keep_prob(times)
        site = Site(
            self.tokens.gather(1, positions).flatten(),
            keep_prob.gather(1, positions).flatten(),
            rate.flatten(),
        )
        # The state that the sampler sees: every site of the group has been visited.
        after = keep_prob.scatter(1, positions, keep_prob.gather(1, positions) * (1.0 - rate))
        noisy, _ = corrupt(
            self.tokens,
            after.float(),
            self.noise.vocab_size,
            seed=self.config.seed,
            step=number,
            sample_ids=ids,
            noise=self.noise.law,
        )
        model = log_conditionals(self.conditionals(noisy, positions, times), self.noise)
        tokens, share = self._replacements(ids, positions.shape[1], number)
        terms = expected_step_bound(site, model, tokens, share, self.noise)
        return terms.view(positions.shape).masked_fill(~group.is_visited.to(device), 0.0).sum(dim=1)

    def _replacements(self, ids: torch.Tensor, sites: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [R, C] and weights that stand for pi: the whole vocabulary where it is short, else draws."""
        rows, vocab_size = len(ids) * sites, self.noise.vocab_size
        if vocab_size <= _SUMMED_VOCABULARY:
            tokens = torch.arange(vocab_size, device=ids.device).expand(rows, -1)
            return tokens, self.noise.probs.to(ids.device).expand(rows, -1)
        tokens = random_tokens(
            ids,
            sites * _DRAWS,
            vocab_size,
            stream=Stream.CANDIDATES,
            seed=self.config.seed,
            step=number,
            noise=self.noise.law,
        ).view(rows, _DRAWS)
        return tokens, torch.full_like(tokens, 1.0 / _DRAWS, dtype=torch.float64)


def expected_step_bound(
    site: Site, model: Factored, tokens: torch.Tensor, share: torch.Tensor, noise: Noise
) -> torch.Tensor:
    """Mean of `step_bound` over the token b of X_{t+1} given the data, for a model that does not see b.

    b is x0 with probability alpha (1 - eps) and drawn from pi otherwise.

    Parameters
    ----------
    site : Site
        R rows.
    model : Factored
        Log-conditionals.
    tokens, share : torch.Tensor
        Tokens that stand for pi and their weights, [R, C].
    noise : Noise
        pi.

    Returns
    -------
    torch.Tensor
        float64 [R].
    """
    every = torch.cat([site.data[:, None], tokens], dim=1)
    log_every = model.at(every)
    divergence = divergence_from_data(site, LogModel(log_every[:, 0], model.mean()), noise)
    stays = (site.keep_prob * (1.0 - site.noise_rate))[:, None]
    weights = torch.cat([stays, (1.0 - stays) * share], dim=1)
    terms = step_bound(site, every, log_every, divergence, noise)
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
    """
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
