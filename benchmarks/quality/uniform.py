"""Uniform diffusion in the mean parametrisation, as UDLM (arXiv 2412.10193) and duo (2506.10892) have it.

Without duo's curriculum and distillation: its bound, its ancestral sampler.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from benchmarks.quality.mdlm import BOUND_STEPS, posterior_step
from benchmarks.quality.network import PlainTransformer
from benchmarks.quality.noising import (
    LogLinear,
    Schedule,
    draw_given,
    keep_of,
    keep_of_positions,
    training_times,
)
from benchmarks.quality.score_entropy import uniform_score_entropy
from benchmarks.quality.system import Drawn, Request, Shape
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.denoiser_likelihood import denoiser_bound
from ggm.sampling.stepwise import initial_tokens
from ggm_kernels import corrupt


def log_score_of_mean(logits: torch.Tensor, noisy: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """log m(a) - log m(x_t), m = alpha p0 + (1 - alpha) / V: [B, L, V] from logits of p0; alpha is [B, 1]."""
    vocab_size = logits.shape[2]
    keep = keep[..., None]
    of_noise = torch.log1p(-keep) - math.log(vocab_size)
    log_mean = torch.logaddexp(keep.log() + logits.log_softmax(dim=2), of_noise.to(logits))
    return log_mean - log_mean.gather(2, noisy[..., None])


class UniformDiffusion(nn.Module):
    """The system; its sampler is "ancestral"."""

    samplers = ("ancestral",)

    def __init__(self, shape: Shape, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.shape, self.schedule = shape, schedule or LogLinear()
        self.network = PlainTransformer(shape.size, shape.vocab_size, shape.vocab_size, shape.length)

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """Bound in nats per token, at times spread over the batch."""
        shape = self.shape
        times = training_times(len(tokens), seed=seed, step=step).to(tokens.device)
        keep = keep_of(self.schedule, times)
        given = draw_given(sample_ids, shape.length, shape.given_share, seed=seed, step=step)
        noisy, _ = corrupt(
            tokens,
            keep.float(),
            shape.vocab_size,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
            frozen=given,
        )
        logits = self._logits(noisy, times, keep, given)
        log_score = log_score_of_mean(logits, noisy, keep.float()[:, None])
        terms = uniform_score_entropy(log_score, noisy, tokens, keep.float()[:, None])
        terms = self.schedule.rate(times).float()[:, None] * terms
        return (terms if given is None else terms.masked_fill(given, 0.0)).mean()

    def _logits(
        self, noisy: torch.Tensor, times: torch.Tensor, keep: torch.Tensor, given: torch.Tensor | None
    ) -> torch.Tensor:
        return self.network(noisy, times, keep_of_positions(keep, self.shape.length, given))

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """Any number of steps."""
        return evaluations

    @torch.inference_mode()
    def sample(self, request: Request) -> Drawn:
        """Sequences, from noise or around what is given."""
        ids = torch.arange(request.count, device=self.network.bias.device)
        noise = initial_tokens(ids, self.shape.length, self.shape.vocab_size, seed=request.seed)
        tokens = request.start(noise)
        times = torch.linspace(1.0, 0.0, request.evaluations + 1, dtype=torch.float64, device=ids.device)
        for number, (now, following) in enumerate(zip(times[:-1], times[1:], strict=True)):
            keep = (keep_of(self.schedule, now), keep_of(self.schedule, following))
            count = len(tokens)
            logits = self._logits(tokens, now.expand(count), keep[0].expand(count), request.given)
            pair = float(keep[0]), float(keep[1])
            posterior_step(tokens, logits, keep=pair, noise=None, request=request, step=number)
        return Drawn(tokens, float(request.evaluations))

    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """The bound of 1000 ancestral steps."""
        grid = torch.linspace(0.0, 1.0, BOUND_STEPS + 1, dtype=torch.float64, device=tokens.device)
        keep = keep_of(self.schedule, grid)

        def denoiser(noisy: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
            return self._logits(noisy, grid[number], keep[number], None)

        config = LikelihoodConfig(times=times, seed=seed)
        return denoiser_bound(denoiser, keep, tokens, config, vocab_size=self.shape.vocab_size)
