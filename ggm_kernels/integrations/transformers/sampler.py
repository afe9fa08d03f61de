"""The entropy-bound sampler of a canvas, and when a canvas is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

from ggm_kernels.integrations.draws import Logits, drawn
from ggm_kernels.ops.commit import commit
from ggm_kernels.ops.corrupt import random_tokens
from ggm_kernels.randomness import Stream


class Denoised(NamedTuple):
    """What a step makes of a canvas: the next one, the likeliest tokens and the entropies, each [B, L]."""

    canvas: torch.Tensor
    argmax: torch.Tensor
    entropy: torch.Tensor


class EntropyBoundSampler(generation.EntropyBoundSampler):
    """transformers' sampler in two calls, `glauber_step` and `commit`, with noise of logical coordinates.

    Parameters
    ----------
    config, canvas_length, vocab_size, max_denoising_steps
        As in transformers.
    seed : int
        Key of the noise, 0 to 2**64 - 1.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence in the noise, integer [B]; default 0 .. B - 1. A sequence is drawn as it
        would be alone under its own coordinate.
    """

    def __init__(
        self,
        config: generation.EntropyBoundSamplerConfig,
        canvas_length: int,
        vocab_size: int,
        max_denoising_steps: int,
        *,
        seed: int,
        sample_ids: torch.Tensor | None = None,
    ) -> None:
        super().__init__(config, canvas_length, vocab_size, max_denoising_steps)
        self._steps, self._seed, self._sample_ids = max_denoising_steps, seed, sample_ids
        self._canvases = 0  # begun so far

    def initialize_canvas(self, batch_size: int, device: torch.device) -> torch.Tensor:
        """Uniform tokens [B, L] for the next canvas."""
        ids = torch.arange(batch_size, device=device) if self._sample_ids is None else self._sample_ids
        step, self._canvases = self._canvases, self._canvases + 1
        return random_tokens(
            ids.to(device),
            self.canvas_length,
            self.vocab_size,
            stream=Stream.INITIAL,
            seed=self._seed,
            step=step,
        )

    def denoise(
        self,
        canvas: torch.Tensor,
        logits: Logits,
        temperature: float,
        steps_left: int,
        finished: torch.Tensor,
    ) -> Denoised:
        """One step of the canvas [B, L], but for the sequences that are `finished`, bool [B].

        Theirs stay; their likeliest tokens are -1 and their entropies NaN.
        """
        ids = None if self._sample_ids is None else self._sample_ids.to(canvas.device)
        step = max(0, self._canvases - 1) * self._steps + self._steps - steps_left
        coordinates: dict[str, Any] = {"seed": self._seed, "step": step, "sample_ids": ids}
        frozen = finished[:, None].expand(canvas.shape)
        tokens, known = drawn(
            canvas, logits, ("entropy", "argmax"), temperature=temperature, frozen=frozen, **coordinates
        )
        accepted = torch.empty(canvas.shape, dtype=torch.bool, device=canvas.device)
        following = commit(
            canvas.clone(),
            tokens,
            -known["entropy"],
            budget=self.entropy_bound,
            eligible=~frozen,
            rest="noise",
            vocab_size=self.vocab_size,
            accepted=accepted,
            **coordinates,
        )
        self.accepted_token_mask = accepted
        return Denoised(following, known["argmax"], known["entropy"])


class StableAndConfident(generation.StableAndConfidentStoppingCriteria):
    """transformers' criterion on entropies that a step knows, in the place of logits."""

    argmax_canvas_history: Any

    def __call__(self, argmax_canvas: torch.Tensor, entropy: torch.Tensor, **_) -> torch.Tensor:
        """Whether each canvas is done, bool [B], from its likeliest tokens and entropies [B, L]."""
        confident = entropy.mean(-1) < self.confidence_threshold
        if self.stability_threshold == 0:
            return confident
        history = self.argmax_canvas_history
        if history is None:
            history = argmax_canvas.new_full((self.stability_threshold, *argmax_canvas.shape), -1)
        stable = (history == argmax_canvas).all(-1).all(0)
        self.argmax_canvas_history = torch.cat([history[1:], argmax_canvas[None]])
        return stable & confident
