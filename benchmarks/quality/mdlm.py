"""Masked diffusion language model (arXiv 2406.07524): SUBS parametrisation, three samplers.

SUBS: the network predicts the data token, never the mask, and a token that is not masked is taken as it is.
The bound in continuous time is then a weighted cross-entropy at masked positions. The network is
not told the time, so its prediction is the same until a token changes: ancestral sampling evaluates
it for the sequences that changed alone. ReMDM (arXiv 2503.00307) masks again, by chance, some of what was
settled, so that it can be revised; the confidence order settles the likeliest tokens first.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.quality.network import PlainTransformer
from benchmarks.quality.noising import LogLinear, Schedule, keep_of, training_times
from benchmarks.quality.system import Drawn, Request, Shape
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.denoiser_likelihood import denoiser_bound
from ggm_kernels import NoiseLaw, commit, corrupt, glauber_step

BOUND_STEPS = 1000
REMASKED = 0.3  # of what can be, in each step ("rescale" in the paper)


def masked_loss(
    logits: torch.Tensor, is_masked: torch.Tensor, data: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Terms of the bound, [B, L]: `weight` = -alpha' / (1 - alpha) times cross-entropy where masked."""
    log_prob = logits.log_softmax(dim=2).gather(2, data[..., None])[..., 0]
    return torch.where(is_masked, -weight * log_prob, torch.zeros_like(log_prob))


class MDLM(nn.Module):
    """The system."""

    samplers = ("ancestral", "remasking", "confidence")

    def __init__(self, shape: Shape, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.shape, self.schedule = shape, schedule or LogLinear()
        self.mask = shape.vocab_size
        self.noise = NoiseLaw.absorbing(shape.vocab_size, self.mask)
        self.network = PlainTransformer(shape.size, shape.vocab_size + 1, shape.vocab_size, shape.length)

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """Bound in nats per token, at times spread over the batch."""
        times = training_times(len(tokens), seed=seed, step=step).to(tokens.device)
        keep = keep_of(self.schedule, times)
        noisy, _ = corrupt(
            tokens,
            keep.float(),
            self.shape.vocab_size,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
            noise=self.noise,
        )
        weight = self.schedule.rate(times) * keep / (1.0 - keep)
        terms = masked_loss(self.network(noisy), noisy == self.mask, tokens, weight.float()[:, None])
        return terms.mean()

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """Any number of steps; confidence order has no use for more of them than positions."""
        return min(evaluations, self.shape.length) if sampler == "confidence" else evaluations

    @torch.inference_mode()
    def sample(self, request: Request) -> Drawn:
        """Sequences, from masks alone or around what is given."""
        masks = torch.full((request.count, self.shape.length), self.mask, device=self.network.bias.device)
        tokens = request.start(masks)
        if request.sampler == "confidence":
            return self._best(tokens, request)
        return self._ancestral(tokens, request, REMASKED if request.sampler == "remasking" else 0.0)

    def _ancestral(self, tokens: torch.Tensor, request: Request, remasked: float) -> Drawn:
        times = torch.linspace(1.0, 0.0, request.evaluations + 1, dtype=torch.float64)
        logits = torch.empty(*tokens.shape, self.shape.vocab_size, device=tokens.device)
        stale = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        evaluated = 0
        for number, (now, following) in enumerate(zip(times[:-1], times[1:], strict=True)):
            rows = stale.nonzero()[:, 0]
            logits[rows] = self.network(tokens[rows])
            evaluated += len(rows)
            keep = float(keep_of(self.schedule, now)), float(keep_of(self.schedule, following))
            before = self.step(tokens, logits, keep, request, number, remasked=remasked)
            stale = (tokens != before).any(dim=1)
        return Drawn(tokens, evaluated / max(1, len(tokens)))

    def step(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        keep: tuple[float, float],
        request: Request,
        number: int,
        *,
        remasked: float,
    ) -> torch.Tensor:
        """From alpha_t to alpha_s: settle masks, and mask again some tokens that were settled; in place.

        Returns the tokens as they were.
        """
        share = remasked * most_remasked(*keep)
        before = tokens.clone()
        further = keep[0], keep[1] + share * keep[0]
        posterior_step(tokens, logits, keep=further, noise=self.noise, request=request, step=number)
        if share == 0.0:
            return before
        kept = torch.full((len(tokens),), 1.0 - share, device=tokens.device)
        masked, _ = corrupt(
            before, kept, self.shape.vocab_size, seed=request.seed, step=number, noise=self.noise
        )
        settled = before != self.mask
        if request.given is not None:
            settled &= ~request.given
        tokens[settled] = masked[settled]
        return before

    def _best(self, tokens: torch.Tensor, request: Request) -> Drawn:
        """Draw everywhere, and take the positions whose tokens have the largest probability."""
        log_prob = torch.empty(tokens.shape, dtype=torch.float32, device=tokens.device)
        evaluated = 0
        for number in range(request.evaluations):
            is_masked = tokens == self.mask
            evaluated += int(is_masked.any(dim=1).sum())
            if not is_masked.any():
                break
            proposal = tokens.clone()
            glauber_step(
                proposal,
                self.network(tokens),
                None,
                seed=request.seed,
                step=number,
                temperature=request.temperature,
                log_prob=log_prob,
                frozen=~is_masked,
            )
            left = is_masked.sum(dim=1)
            count = -(-left // (request.evaluations - number))
            score = log_prob.masked_fill(~is_masked, -torch.inf)
            commit(tokens, proposal, score, count=count, eligible=is_masked, seed=request.seed, step=number)
        return Drawn(tokens, evaluated / max(1, len(tokens)))

    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """The bound of 1000 ancestral steps."""
        keep = torch.linspace(1.0, 0.0, BOUND_STEPS + 1, dtype=torch.float64)
        return denoiser_bound(
            lambda noisy, _: self.network(noisy),
            keep,
            tokens,
            LikelihoodConfig(times=times, seed=seed),
            vocab_size=self.shape.vocab_size,
            mask_id=self.mask,
        )


def most_remasked(now: float, following: float) -> float:
    """The largest share of settled tokens that can be masked again on the way from alpha_t to alpha_s.

    The marginals stay what they are: masks are settled with the probability that alpha_s and those masked
    again ask for, (alpha_s + sigma alpha_t - alpha_t) / (1 - alpha_t), which is at most 1.
    """
    return 1.0 if now == 0.0 else min(1.0, (1.0 - following) / now)


def posterior_step(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    *,
    keep: tuple[float, float],
    noise: NoiseLaw | None,
    request: Request,
    step: int,
) -> None:
    """Draw x_s from the posterior given x_t, with the data token's predicted law in its place; in place.

    Parameters
    ----------
    tokens : torch.Tensor
        x_t, int64 [B, L].
    logits : torch.Tensor
        Of the data token, float [B, L, V].
    keep : pair of float
        alpha_t and alpha_s.
    noise : NoiseLaw or None
        Absorbing, or None for uniform.
    request : Request
        Seed, temperature and given positions.
    step : int
        Coordinate of the draws.

    Notes
    -----
    q(x_s | x_t) is proportional to m(c) [r 1{c = x_t} + (1 - r) pi(c)] with m = alpha_s p0 + (1 - alpha_s) pi
    and r = alpha_t / alpha_s: one step of keep-or-replace from a mixture. At alpha_s = 1 a mask is replaced.
    """
    now, following = keep
    count = len(tokens)
    glauber_step(
        tokens,
        logits,
        None,
        seed=request.seed,
        step=step,
        temperature=request.temperature,
        noise_rate=torch.full((count, 1), 1.0 - now / following, dtype=torch.float64, device=tokens.device),
        mixture=torch.full((count,), following, dtype=torch.float32, device=tokens.device),
        noise=noise,
        normalize=True,
        frozen=request.given,
    )
