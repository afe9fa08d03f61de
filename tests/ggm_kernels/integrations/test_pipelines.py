"""Pipelines of diffusers with our schedulers in theirs' place, with logits and without."""

import inspect

import pytest
import torch
from clients import (
    Processor,
    generator,
    library_or_skip,
    refuse_logits,
    tiny_diffusion_gemma,
    tiny_llama,
)

diffusers = library_or_skip("diffusers")
library_or_skip("transformers")

from ggm_kernels.integrations import diffusers as ours  # noqa: E402
from ggm_kernels.integrations.transformers import linear_head  # noqa: E402

# Nothing is left to chance but the first canvas, which the pipeline draws.
CERTAIN = {
    "EntropyBoundScheduler": ({"entropy_bound": 1e6, "t_min": 0.0, "t_max": 1e-4}, 4),
    "DiscreteDDIMScheduler": ({}, 1),
    "BlockRefinementScheduler": ({}, 1),
}


@pytest.fixture(scope="module")
def gemma():
    """With the masks of its decoder by the name that diffusers 0.42 has for the cache, until transformers 5.24."""
    model = tiny_diffusion_gemma()
    masks = model.model.decoder.create_diffusion_decoder_attention_mask
    if "past_key_values" not in inspect.signature(masks).parameters:
        renamed = lambda past_key_values=None, **others: masks(cache=past_key_values, **others)  # noqa: E731
        model.model.decoder.create_diffusion_decoder_attention_mask = renamed
    return model


@pytest.mark.parametrize("confidence", [None, 0.5])
@pytest.mark.parametrize("name", CERTAIN)
def test_diffusion_gemma(gemma, monkeypatch, name, confidence):
    config, steps = CERTAIN[name]
    pipe = diffusers.DiffusionGemmaPipeline(gemma, getattr(diffusers, name)(**config), Processor())
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        return pipe(
            prompt=["a first", "seconds"],
            gen_length=8,
            num_inference_steps=steps,
            confidence_threshold=confidence,
            generator=generator(1),
            output_type="seq",
        ).sequences

    expected = run()
    pipe.scheduler = getattr(ours, name).from_config(pipe.scheduler.config)
    assert torch.equal(run(), expected)
    with linear_head(gemma), monkeypatch.context() as patch:
        if confidence is None:
            refuse_logits(patch, gemma.lm_head)
        assert torch.equal(run(), expected)
    assert "forward" not in vars(gemma)


@pytest.mark.parametrize("corrector_steps", [0, 1])
@pytest.mark.parametrize("name", ["DiscreteDDIMScheduler", "PlugInDDIMScheduler"])
def test_predictor_and_corrector_run_from_hidden_states(gemma, monkeypatch, corrector_steps, name):
    scheduler = getattr(ours, name)(corrector_steps=corrector_steps, corrector_k=3)
    pipe = diffusers.DiffusionGemmaPipeline(gemma, scheduler, Processor())
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        return pipe(
            prompt="a first",
            gen_length=16,
            num_inference_steps=7,
            temperature=0.7,
            confidence_threshold=None,
            generator=generator(3),
            output_type="seq",
        ).sequences

    from_logits = run()
    with linear_head(gemma), monkeypatch.context() as patch:
        refuse_logits(patch, gemma.lm_head)
        assert torch.equal(run(), from_logits)


@pytest.mark.parametrize("editing", [None, 0.1])
def test_llada2(monkeypatch, editing):
    """Greedy, token for token; with the linear head only the block at work goes through it."""
    model = tiny_llama()
    pipe = diffusers.LLaDA2Pipeline(model, diffusers.BlockRefinementScheduler(), None)
    pipe.set_progress_bar_config(disable=True)
    prompt = torch.randint(60, (3, 6), generator=generator(2))

    def run(**options) -> torch.Tensor:
        return pipe(
            input_ids=prompt,
            gen_length=24,
            block_length=8,
            num_inference_steps=5,
            threshold=0.3,
            editing_threshold=editing,
            mask_token_id=63,
            output_type="seq",
            **options,
        ).sequences

    expected = run()
    pipe.scheduler = ours.BlockRefinementScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(run(), expected)
    sampled = {"temperature": 0.9, "top_k": 8}
    drawn = run(generator=generator(4), **sampled)
    with linear_head(model), monkeypatch.context() as patch:
        refuse_logits(patch, model.lm_head)
        assert torch.equal(run(), expected)
        assert torch.equal(run(generator=generator(4), **sampled), drawn)
    assert not torch.equal(drawn, expected)


def test_linear_head_in_and_out():
    model = tiny_llama()
    placed = linear_head(model)
    with pytest.raises(RuntimeError, match="forward is replaced already"):
        linear_head(model)
    placed.remove()
    assert isinstance(model(torch.zeros(1, 3, dtype=torch.int64)).logits, torch.Tensor)
    with pytest.raises(TypeError, match="allowed: one with a linear head"):
        linear_head(model.model)
