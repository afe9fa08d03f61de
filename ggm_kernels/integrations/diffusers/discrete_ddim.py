"""`DiscreteDDIMScheduler`: posterior steps of uniform diffusion, and the Gibbs corrector."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput

from ggm_kernels.integrations.draws import Logits, drawn, logits_at, logits_of, seed_from
from ggm_kernels.ops.corrupt import corrupt, random_tokens
from ggm_kernels.randomness import Stream

_UNIFORMS = 2**31 - 1  # values of a uniform that a position of the corrector is chosen by


class DiscreteDDIMScheduler(diffusers.DiscreteDDIMScheduler):
    """`diffusers.DiscreteDDIMScheduler` on `glauber_step` and `corrupt`.

    The posterior is averaged over x0: a draw from the logits, then x_s from q(x_s | x_t, x0).
    `PlugInDDIMScheduler` has the other convention.
    """

    def step(
        self,
        model_output: Logits | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        hidden: torch.Tensor | None = None,
        lm_head: torch.nn.Module | torch.Tensor | None = None,
        softcap: float | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> DiscreteDDIMSchedulerOutput | tuple:
        """Draw the next sample from the posterior of uniform diffusion.

        Parameters
        ----------
        model_output, hidden, lm_head, softcap, generator, sample_ids
            As in `EntropyBoundScheduler.step`.
        timestep : int or torch.Tensor
            Number of this step, 0 to num_inference_steps - 1.
        sample : torch.Tensor
            Tokens x_t [B, L]; left as they are.
        temperature : float
            Of the law that x0 is drawn from; 0 takes the likeliest.
        return_dict : bool
            Whether to return a `DiscreteDDIMSchedulerOutput` and not a tuple.

        Returns
        -------
        DiscreteDDIMSchedulerOutput or tuple
            `prev_sample`, `sampled_tokens`, `sampled_probs`, `pred_logits`.
        """
        logits = logits_of(model_output, hidden, lm_head, softcap)
        alpha_t, alpha_s = self._alpha(int(timestep)), self._alpha(int(timestep) + 1)
        coordinates: dict[str, Any] = {"seed": seed_from(generator), "sample_ids": sample_ids}
        previous, tokens, log_prob = self._draw(
            sample, logits, temperature, alpha_t / alpha_s, alpha_s, coordinates
        )
        return _output(previous, tokens, log_prob.exp(), logits, return_dict)

    def _draw(self, sample, logits, temperature, survival: float, alpha_s: float, coordinates):
        """x_s, the tokens x0 drawn on the way, and the logarithm of their probabilities."""
        clean, known = drawn(
            sample, logits, ("raw_log_prob",), step=0, temperature=temperature, **coordinates
        )
        previous = _posterior(sample, clean, survival, alpha_s, logits.shape[-1], coordinates)
        return previous, clean, known["raw_log_prob"]

    def step_correct(
        self,
        model_output: Logits | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        hidden: torch.Tensor | None = None,
        lm_head: torch.nn.Module | torch.Tensor | None = None,
        softcap: float | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> DiscreteDDIMSchedulerOutput | tuple:
        """Draw a few positions anew from their conditional given the others: a Gibbs sweep of the corrector.

        The conditional is alpha p0 + (1 - alpha) / V, p0 the leave-one-out law of x0, which is the
        denoiser's with the logit of the present token lowered by log(1 + V alpha / (1 - alpha)).

        Parameters
        ----------
        model_output, hidden, lm_head, softcap, generator, sample_ids
            As in `EntropyBoundScheduler.step`; logits of a denoiser given this very `sample`.
        timestep : int or torch.Tensor
            Number of the step done before; the corrector works at the noise that it led to.
        sample : torch.Tensor
            Tokens x_s [B, L]; left as they are.
        return_dict : bool
            Whether to return a `DiscreteDDIMSchedulerOutput` and not a tuple.

        Returns
        -------
        DiscreteDDIMSchedulerOutput or tuple
            `prev_sample` [B, L], `sampled_tokens` and `sampled_probs` [B, corrector_k], `pred_logits`.
        """
        logits = logits_of(model_output, hidden, lm_head, softcap)
        alpha, vocab_size = self._alpha(int(timestep) + 1), logits.shape[-1]
        shift = -math.log1p(vocab_size * alpha / (1 - alpha)) if 0 < alpha < 1 else 0.0
        per_row = lambda value: sample.new_full(sample.shape[:1], value, dtype=torch.float32)  # noqa: E731
        coordinates: dict[str, Any] = {"seed": seed_from(generator), "step": 0, "sample_ids": sample_ids}
        tokens, known = drawn(
            sample,
            logits,
            ("log_prob", "log_sum_exp", "margin", "argmax"),
            mixture=per_row(alpha),
            logit_shift=per_row(shift),
            **coordinates,
        )
        doubt = self._doubt(sample, logits, known, alpha, shift)
        positions = self._chosen(sample, doubt, coordinates)
        resampled = tokens.gather(1, positions)
        probs = known["log_prob"].exp().gather(1, positions)
        return _output(sample.scatter(1, positions, resampled), resampled, probs, logits, return_dict)

    def _doubt(self, sample, logits, known, alpha: float, shift: float) -> torch.Tensor | None:
        """How little a position's token is to be trusted, float32 [B, L]; None for no difference."""
        selection = self.config.corrector_selection
        if selection == "random":
            return None
        is_best = known["argmax"] == sample
        best = logits_at(logits, known["argmax"]) + torch.where(is_best, shift, 0.0)
        if selection == "lowest_maxprob":
            return -_log_conditional(best, known["log_sum_exp"], alpha, logits.shape[-1])
        current = _log_conditional(
            logits_at(logits, sample) + shift, known["log_sum_exp"], alpha, logits.shape[-1]
        )
        if selection == "lowest_current_prob":
            return -current
        if selection == "lowest_log_margin":
            other = torch.where(is_best, best - known["margin"], best)
            return _log_conditional(other, known["log_sum_exp"], alpha, logits.shape[-1]) - current
        raise ValueError(
            f"corrector_selection: got {selection!r}; allowed: 'lowest_log_margin', 'lowest_maxprob', "
            "'lowest_current_prob', 'random'"
        )

    def _chosen(self, sample, doubt: torch.Tensor | None, coordinates) -> torch.Tensor:
        """Positions [B, corrector_k] drawn without replacement, in proportion to exp(doubt / tau)."""
        batch, length = sample.shape
        ids = coordinates["sample_ids"]
        ids = torch.arange(batch, device=sample.device) if ids is None else ids
        words = random_tokens(ids, length, _UNIFORMS, stream=Stream.VISIT_ORDER, seed=coordinates["seed"])
        keys = -torch.log(-torch.log((words.double() + 0.5) / _UNIFORMS))
        if doubt is not None:
            keys = keys + doubt / float(self.config.corrector_selection_tau)
        return keys.topk(min(max(1, int(self.config.corrector_k)), length), dim=1).indices


class PlugInDDIMScheduler(DiscreteDDIMScheduler):
    """`DiscreteDDIMScheduler` with the law of x0 in the place of x0 in the formula of q(x_s | x_t, x0).

    So D3PM, UDLM and duo do it; it is one call. Both conventions agree where x0 is certain. Whether a token
    is kept follows from the logits as they are; `temperature` is of the law that others are drawn from.
    There is no x0: `sampled_tokens` are x_s, with NaN for the probability of a token that was kept.
    """

    def _draw(self, sample, logits, temperature, survival: float, alpha_s: float, coordinates):
        tokens, known = drawn(
            sample,
            logits,
            ("raw_log_prob",),
            step=0,
            temperature=temperature,
            noise_rate=1 - survival,
            mixture=sample.new_full(sample.shape[:1], alpha_s, dtype=torch.float32),
            normalize=True,
            **coordinates,
        )
        return tokens, tokens, known["raw_log_prob"]


def _log_conditional(h, log_sum_exp, alpha: float, vocab_size: int) -> torch.Tensor:
    """log(alpha exp(h) + (1 - alpha) / V) of leave-one-out logits, not normalised."""
    law = math.log(alpha) + (h - log_sum_exp)
    if alpha >= 1:
        return law
    return torch.logaddexp(law, torch.full_like(law, math.log1p(-alpha) - math.log(vocab_size)))


def _posterior(sample, clean, survival: float, alpha_s: float, vocab_size: int, coordinates) -> torch.Tensor:
    """x_s from q(x_s | x_t, x0) of uniform diffusion: x0, x_t, or a token of the noise."""
    is_clean = (sample == clean).float()
    jumps = alpha_s * (1 - survival) / vocab_size + survival * alpha_s * is_clean
    stays = survival * (1 - alpha_s) / vocab_size
    noised = (1 - survival) * (1 - alpha_s) / vocab_size
    _, is_kept = corrupt(sample, stays / (jumps + stays + noised), vocab_size, step=0, **coordinates)
    moved, _ = corrupt(clean, jumps / (jumps + noised), vocab_size, step=1, **coordinates)
    return torch.where(is_kept, sample, moved)


def _output(previous, tokens, probs, logits, return_dict: bool) -> DiscreteDDIMSchedulerOutput | tuple:
    if not return_dict:
        return previous, tokens, probs, logits
    return DiscreteDDIMSchedulerOutput(
        prev_sample=previous, sampled_tokens=tokens, sampled_probs=probs, pred_logits=logits
    )
