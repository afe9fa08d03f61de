"""Score entropy discrete diffusion (arXiv 2310.16834), absorbing or uniform: Euler and analytic samplers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from benchmarks.quality.network import PlainTransformer
from benchmarks.quality.noising import (
    Geometric,
    LogLinear,
    Schedule,
    draw_given,
    keep_of,
    keep_of_positions,
    training_times,
)
from benchmarks.quality.score_entropy import absorbing_score_entropy, uniform_score_entropy
from benchmarks.quality.system import Drawn, Request, Shape
from ggm.evaluation.bound import Noise, prior_divergence
from ggm.sampling.stepwise import initial_tokens
from ggm_kernels import NoiseLaw, corrupt, glauber_step

# Time at which sampling ends; a last draw then removes what noise is left.
LAST_TIME = 1e-5


class SEDD(nn.Module):
    """The system; `samplers` are "analytic" (Tweedie) and "euler", both with a last draw without noise.

    Parameters
    ----------
    shape : Shape
        What is modelled.
    kind : str
        "absorbing" or "uniform" noise.
    schedule : Schedule, optional
        By default that of the paper: log-linear for absorbing, geometric for uniform noise.
    """

    samplers = ("analytic", "euler")

    def __init__(
        self, shape: Shape, kind: Literal["absorbing", "uniform"], schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.shape, self.absorbing = shape, kind == "absorbing"
        self.schedule = schedule or (LogLinear() if self.absorbing else Geometric())
        vocab_size = shape.vocab_size
        self.mask = vocab_size if self.absorbing else None
        self.noise = NoiseLaw.absorbing(vocab_size, vocab_size) if self.absorbing else None
        self.network = PlainTransformer(shape.size, vocab_size + self.absorbing, vocab_size, shape.length)

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """Bound in nats per token, at times spread over the batch."""
        times = training_times(len(tokens), seed=seed, step=step).to(tokens.device)
        # Told how much noise there is, it must have seen what is given, with masks too.
        given = draw_given(sample_ids, self.shape.length, self.shape.given_share, seed=seed, step=step)
        return self._terms(tokens, times, given, seed=seed, step=step, sample_ids=sample_ids).mean()

    def _terms(
        self,
        tokens: torch.Tensor,
        times: torch.Tensor,
        given: torch.Tensor | None,
        *,
        seed: int,
        step: int,
        sample_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Integrand of the bound at times [B], float32 [B, L]."""
        keep = keep_of(self.schedule, times)
        noisy, _ = corrupt(
            tokens,
            keep.float(),
            self.shape.vocab_size,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
            frozen=given,
            noise=self.noise,
        )
        log_score = self.log_score(noisy, times, given)
        if self.absorbing:
            sigma = self.schedule.sigma(times).float()[:, None]
            terms = absorbing_score_entropy(log_score, noisy == self.mask, tokens, sigma)
        else:
            terms = uniform_score_entropy(log_score, noisy, tokens, keep.float()[:, None])
        terms = self.schedule.rate(times).float()[:, None] * terms
        return terms if given is None else terms.masked_fill(given, 0.0)

    def log_score(
        self, noisy: torch.Tensor, times: torch.Tensor, given: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logarithm of the predicted ratios of V tokens to the one that stands there, float32 [B, L, V].

        At a mask they are about 1 / expm1(sigma) in sum, and the network gives what is left to learn; with
        uniform noise the ratio of the token itself is 1.
        """
        sigma, keep = self.schedule.sigma(times), keep_of(self.schedule, times)
        logits = self.network(noisy, times, keep_of_positions(keep, self.shape.length, given))
        if self.absorbing:
            return logits - torch.expm1(sigma).log().float()[:, None, None]
        log_score = logits + math.log(self.shape.vocab_size)
        return log_score.scatter(2, noisy[..., None], 0.0)

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """Any number of steps from 2: the last evaluation is that of the last draw."""
        return max(2, evaluations)

    @torch.inference_mode()
    def sample(self, request: Request) -> Drawn:
        """Sequences, from noise or around what is given."""
        shape, steps, device = self.shape, request.evaluations - 1, self.network.bias.device
        ids = torch.arange(request.count, device=device)
        if self.mask is None:
            noise = initial_tokens(ids, shape.length, shape.vocab_size, seed=request.seed)
        else:
            noise = torch.full((request.count, shape.length), self.mask, device=device)
        tokens = request.start(noise)
        times = torch.linspace(1.0, LAST_TIME, steps + 1, dtype=torch.float64, device=device)
        for number in range(steps + 1):
            now = times[number].expand(len(tokens))
            score = self.log_score(tokens, now, request.given).double().exp()
            if number == steps:
                probs = self._analytic(tokens, score, self.schedule.sigma(times[-1]))
                probs = probs[..., : shape.vocab_size]
            elif request.sampler == "analytic":
                decrease = self.schedule.sigma(times[number]) - self.schedule.sigma(times[number + 1])
                probs = self._analytic(tokens, score, decrease)
            else:
                probs = self._euler(
                    tokens, score, self.schedule.rate(times[number]) * (times[number] - times[number + 1])
                )
            self._draw(tokens, probs, request, number)
        return Drawn(tokens, float(request.evaluations))

    def _analytic(self, tokens: torch.Tensor, score: torch.Tensor, decrease: torch.Tensor) -> torch.Tensor:
        """Probabilities of the next tokens by Tweedie's formula, up to a factor; `decrease` of sigma."""
        kept, grown = torch.exp(-decrease), torch.exp(decrease)
        if self.absorbing:
            # At a mask: (e^d - 1) s(a) for a token, the rest for the mask. What is no mask stays.
            moves = (grown - 1.0) * score
            stays = 1.0 - moves.sum(dim=2, keepdim=True)
            probs = torch.cat([moves, stays], dim=2)
            return torch.where((tokens == self.mask)[..., None], probs, one_hot(tokens, probs))
        vocab_size = score.shape[2]
        earlier = (kept - 1.0) / (vocab_size * kept) * score.sum(dim=2, keepdim=True) + score / kept
        return earlier * ((1.0 - kept) / vocab_size + kept * one_hot(tokens, score))

    def _euler(self, tokens: torch.Tensor, score: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        """Probabilities of the next tokens to first order, up to a factor; `amount` is rate times step."""
        if self.absorbing:
            moves = amount * torch.cat([score, torch.zeros_like(score[..., :1])], dim=2)
            moves = torch.where((tokens == self.mask)[..., None], moves, torch.zeros_like(moves))
        else:
            moves = amount / score.shape[2] * score * (1.0 - one_hot(tokens, score))
        return moves + one_hot(tokens, moves) * (1.0 - moves.sum(dim=2, keepdim=True))

    def _draw(self, tokens: torch.Tensor, probs: torch.Tensor, request: Request, step: int) -> None:
        """Draw tokens in place. A temperature changes where jumps go, not how many there are."""
        probs = probs.clamp_min(0.0)
        if request.temperature != 1.0:
            probs = tempered_jumps(tokens, probs, request.temperature)
        # The last draw knows no mask: a token that is one must not be looked at as a state.
        logits = probs.log().float()
        glauber_step(tokens, logits, None, seed=request.seed, step=step, frozen=request.given)

    @torch.inference_mode()
    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """The paper's bound in continuous time: integral of the loss, plus the divergence at time 1.

        The step from the least noise to none is left out, as in the paper. Absorbing noise has no prior
        with density at the rest of the data at time 1; its divergence is left out, too. Each is below a
        hundredth of a nat per token.
        """
        ids = torch.arange(len(tokens), device=tokens.device)
        total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for number in range(times):
            at = training_times(len(tokens), seed=seed, step=number, least=0.0).to(tokens.device)
            at = (at + number / times) % 1.0
            terms = self._terms(tokens, at.clamp_min(LAST_TIME), None, seed=seed, step=number, sample_ids=ids)
            total += terms.double().sum(dim=1) / times
        if not self.absorbing:
            last = keep_of(self.schedule, torch.ones((), dtype=torch.float64, device=tokens.device))
            noise = Noise(None, self.shape.vocab_size)
            total += prior_divergence(last.expand(tokens.shape), tokens, noise).sum(dim=1)
        return total.cpu()


def one_hot(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """1 at the token that stands there, in the shape of `like` [B, L, states]; nowhere if it is no state."""
    return (tokens[..., None] == torch.arange(like.shape[2], device=tokens.device)).to(like)


def tempered_jumps(tokens: torch.Tensor, probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities whose jumps go to p ** (1 / temperature), their total as before."""
    stays = one_hot(tokens, probs)
    jumps = probs * (1.0 - stays)
    sharper = (jumps.log() / temperature).softmax(dim=2).nan_to_num() * jumps.sum(dim=2, keepdim=True)
    return sharper + probs * stays
