"""`install`: a loaded DiffusionGemma generates on these kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DiffusionGemmaForBlockDiffusion, LogitsProcessorList
from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

from ggm_kernels.integrations.draws import Logits, seed_from
from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.integrations.transformers.replaced import Replaced
from ggm_kernels.integrations.transformers.sampler import EntropyBoundSampler, StableAndConfident
from ggm_kernels.integrations.transformers.self_conditioning import SelfConditioning


def install(
    model: DiffusionGemmaForBlockDiffusion,
    *,
    seed: int | None = None,
    sample_ids: torch.Tensor | None = None,
) -> Replaced:
    """Have ``model.generate`` draw on these kernels, from hidden states, until the result's `remove()`.

    Arguments, configuration, stopping and outputs of `generate` stay; tokens follow the same law. No tensor
    of [B, L, V] is made, neither of logits nor for self-conditioning, unless `generate` is given logits
    processors, which ask for one. The model itself, its class and its `forward` are as before.

    Parameters
    ----------
    model : DiffusionGemmaForBlockDiffusion
        A model of transformers.
    seed : int, optional
        Key of the noise of every call of `generate`; None takes one from torch's generator of the CPU at
        each call, so that ``torch.manual_seed`` has the say.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence in the noise, integer [B]; default 0 .. B - 1. A batch generates what its
        sequences would alone.

    Returns
    -------
    Replaced
        Its `remove()`, or the end of a ``with`` block, takes all of it out again.

    Raises
    ------
    TypeError
        For another model.
    RuntimeError
        If it is in already, or this version of transformers is built differently.

    Notes
    -----
    Entropies and self-conditioning are summed in float32, where transformers rounds logits to the dtype of
    the embeddings first. With a compiled cache the decoder is compiled without the head.
    """
    if not isinstance(model, DiffusionGemmaForBlockDiffusion):
        raise TypeError(f"model: got {type(model).__name__}; allowed: a DiffusionGemmaForBlockDiffusion")
    step = _Step(model, SelfConditioning(model), seed, sample_ids)
    methods: dict[str, Callable] = {
        "_prepare_sampler": step.prepare_sampler,
        "_prepare_diffusion_stopping_criteria": step.prepare_stopping,
        "_compile_functions": step.compile_functions,
        "_denoising_step": step.denoise,
    }
    return Replaced(model, methods, step.conditioning.remove)


class _Step:
    """What stands in for methods of the model while it generates."""

    def __init__(self, model, conditioning: SelfConditioning, seed: int | None, sample_ids) -> None:
        self.model, self.conditioning = model, conditioning
        self._seed, self._sample_ids = seed, sample_ids

    def prepare_sampler(self, generation_config) -> EntropyBoundSampler:
        self.conditioning.compile(False)
        return EntropyBoundSampler(
            generation_config.sampler_config,
            canvas_length=self.model.config.canvas_length,
            vocab_size=self.model.config.text_config.vocab_size,
            max_denoising_steps=generation_config.max_denoising_steps,
            seed=seed_from(None) if self._seed is None else self._seed,
            sample_ids=self._sample_ids,
        )

    def prepare_stopping(self, generation_config) -> StableAndConfident | None:
        stability, confidence = generation_config.stability_threshold, generation_config.confidence_threshold
        return None if stability is None or confidence is None else StableAndConfident(stability, confidence)

    def compile_functions(self, sampler, stopping):
        """Compile the encoder and the decoder below its head; sampling is kernels anyway."""
        self.conditioning.compile(True)
        if not hasattr(self.model, "_compiled_encoder"):
            self.model._compiled_encoder = torch.compile(
                self.model.model.encoder, mode="reduce-overhead", fullgraph=True
            )
        return self.model._compiled_encoder, self.model.forward, sampler, stopping

    def denoise(
        self,
        decoder_forward,
        current_canvas,
        argmax_canvas,
        input_ids,
        decoder_position_ids,
        self_conditioning_logits,
        mask_mapping,
        finished_denoising,
        cur_step: int,
        sampler: EntropyBoundSampler,
        logits_processor: LogitsProcessorList,
        diffusion_stopping_criteria: StableAndConfident | None,
        **cache_and_model_kwargs,
    ):
        """One step of `generate`: canvas, likeliest tokens, what the next conditions on, which are done."""
        hidden = self.conditioning.hidden_states(
            self_conditioning_logits,
            decoder_input_ids=current_canvas,
            decoder_attention_mask=mask_mapping,
            decoder_position_ids=decoder_position_ids,
            **cache_and_model_kwargs,
        )
        logits: Any = LinearLogits.of(hidden, self.model.lm_head, self.model.final_logit_softcapping)
        temperature, others = _temperature(logits_processor, cur_step)
        if others:
            step = torch.tensor(cur_step, device=current_canvas.device, dtype=torch.int32)
            logits = others(input_ids, logits.multiplied_out(), cur_step=step)
        canvas, argmax, entropy = sampler.denoise(
            current_canvas, logits, temperature, cur_step, finished_denoising
        )
        if diffusion_stopping_criteria is not None:
            argmax = torch.where(finished_denoising[:, None], argmax_canvas, argmax)
            finished_denoising = finished_denoising | diffusion_stopping_criteria(argmax, entropy)
        return canvas, argmax, _conditioned_on(logits, temperature, hidden.dtype), finished_denoising


def _temperature(processors: LogitsProcessorList, steps_left: int) -> tuple[float, LogitsProcessorList]:
    """The temperature of the schedule, where it comes last as by default, and the other processors."""
    last = processors[-1] if processors else None
    if not isinstance(last, generation.LinearTemperatureScheduleLogitsProcessor):
        return 1.0, processors
    share = steps_left / last.max_denoising_steps
    return last.t_min + (last.t_max - last.t_min) * share, LogitsProcessorList(processors[:-1])


def _conditioned_on(logits: Logits, temperature: float, dtype: torch.dtype) -> Logits:
    logits = logits / temperature
    return logits if isinstance(logits, LinearLogits) else logits.to(dtype)
