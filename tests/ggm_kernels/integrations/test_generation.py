"""A tiny random DiffusionGemma generates with transformers' own sampler and with ours."""

import functools

import pytest
import torch
from clients import check_same_law, library_or_skip, refuse_logits, tiny_diffusion_gemma

transformers = library_or_skip("transformers")

from ggm_kernels.integrations.transformers import install  # noqa: E402

# So cold that nothing is left to chance.
GREEDY = {"t_min": 0.0, "t_max": 1e-4}


@pytest.fixture(scope="module")
def model():
    return tiny_diffusion_gemma()


@pytest.fixture
def prompt():
    return torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))


def start(prompt):
    """The first canvas, which either would draw."""
    return torch.randint(64, (len(prompt), 8), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("thresholds", [{}, {"stability_threshold": 0}, {"stability_threshold": 2}])
def test_without_chance_tokens_are_theirs(model, prompt, monkeypatch, thresholds, cache):
    options = {"max_new_tokens": 8, "max_denoising_steps": 7, **GREEDY, **thresholds}
    options |= {"cache_implementation": cache, "disable_compile": True}
    expected = model.generate(prompt, decoder_input_ids=start(prompt), **options)
    with install(model), monkeypatch.context() as patch:
        refuse_logits(patch, model.lm_head)
        given = model.generate(prompt, decoder_input_ids=start(prompt), **options)
    assert torch.equal(given.sequences, expected.sequences)
    assert torch.equal(given.tokens_per_forward, expected.tokens_per_forward)
    assert not torch.equal(given.sequences[:, 5:], start(prompt))


@pytest.mark.slow
def test_compiled_is_eager(model, prompt, monkeypatch):
    compiled = []

    def traced(function, mode=None, fullgraph=False):
        compiled.append(function)
        return torch._dynamo.optimize("eager", nopython=fullgraph)(function)

    monkeypatch.setattr(torch, "compile", traced)
    options = {"max_new_tokens": 16, "max_denoising_steps": 3, "cache_implementation": "static"}
    with install(model, seed=4):
        plain = model.generate(prompt, **options, disable_compile=True).sequences
        assert not compiled
        assert torch.equal(model.generate(prompt, **options).sequences, plain)
    assert len(compiled) == 2
    vars(model).pop("_compiled_encoder", None)


def test_logits_processors_are_theirs(model, prompt):
    """Top-k of 1, which no temperature undoes; after it the schedule of temperatures."""
    only = transformers.LogitsProcessorList([transformers.TopKLogitsWarper(1)])
    options = {"max_new_tokens": 8, "max_denoising_steps": 4, "decoder_input_ids": start(prompt)}
    expected = model.generate(prompt, logits_processor=only, **options).sequences
    only = transformers.LogitsProcessorList([transformers.TopKLogitsWarper(1)])
    with install(model):
        assert torch.equal(model.generate(prompt, logits_processor=only, **options).sequences, expected)


def test_a_batch_is_its_sequences(model):
    prompts = torch.randint(3, 60, (8, 5), generator=torch.Generator().manual_seed(3))
    options = {"max_new_tokens": 16, "max_denoising_steps": 5, "t_min": 0.1, "t_max": 1.5}
    options |= {"stability_threshold": 0, "confidence_threshold": 1.2}
    with install(model, seed=7):
        whole = model.generate(prompts, **options)
    for row in range(8):
        one = slice(row, row + 1)
        with install(model, seed=7, sample_ids=torch.tensor([row])):
            alone = model.generate(prompts[one], **options)
        assert torch.equal(alone.sequences, whole.sequences[one])
        assert torch.equal(alone.tokens_per_forward, whole.tokens_per_forward[one])
    assert len(whole.tokens_per_forward.unique()) > 1  # some were done before others


def test_seeds(model, prompt):
    run = functools.partial(model.generate, prompt, max_new_tokens=8, max_denoising_steps=3)
    with install(model):
        torch.manual_seed(0)
        first, second = run().sequences, run().sequences
        torch.manual_seed(0)
        assert torch.equal(run().sequences, first)
        assert not torch.equal(second, first)
    with install(model, seed=5):
        assert torch.equal(run().sequences, run().sequences)


def test_in_and_out(model, prompt):
    options = {"max_new_tokens": 8, "max_denoising_steps": 3}
    names, keys = set(vars(model)), model.state_dict().keys()
    torch.manual_seed(0)
    before = model.generate(prompt, **options).sequences
    placed = install(model)
    with pytest.raises(RuntimeError, match="_prepare_sampler is replaced already: remove"):
        install(model)
    model.generate(prompt, **options)
    placed.remove()
    placed.remove()
    assert set(vars(model)) == names and model.state_dict().keys() == keys
    assert not model.model.decoder.self_conditioning._forward_pre_hooks
    torch.manual_seed(0)
    assert torch.equal(model.generate(prompt, **options).sequences, before)
    with pytest.raises(TypeError, match="model: got Linear; allowed: a DiffusionGemmaForBlockDiffusion"):
        install(torch.nn.Linear(2, 2))


def test_law():
    """Whole generations of a model with five tokens and two positions, against transformers' own."""
    small = tiny_diffusion_gemma(vocab_size=5, canvas_length=2)
    prompt = torch.tensor([[1, 0, 1]]).expand(3000, 3)
    options = {"max_new_tokens": 2, "max_denoising_steps": 3, "t_min": 0.5, "t_max": 1.5}
    bound = transformers.models.diffusion_gemma.EntropyBoundSamplerConfig
    options["sampler_config"] = bound(1.2)
    torch.manual_seed(0)
    theirs = small.generate(prompt, **options).sequences[:, 3:]
    with install(small, seed=1):
        mine = small.generate(prompt, **options).sequences[:, 3:]
        fewer = small.generate(prompt, **{**options, "sampler_config": bound(0.01)}).sequences[:, 3:]
    check_same_law(mine, theirs, 5)
    with pytest.raises(AssertionError):
        check_same_law(fewer, theirs, 5)


def test_mean_embeddings_condition_as_logits_do(model, prompt):
    """The decoder's hidden states, given what transformers makes of logits and what we make of factors."""
    from ggm_kernels.integrations.linear_logits import LinearLogits
    from ggm_kernels.integrations.transformers.self_conditioning import SelfConditioning

    canvas = start(prompt)
    logits = LinearLogits(torch.randn(3, 8, 16), model.lm_head.weight, None, 20.0) / 0.6
    conditioning = SelfConditioning(model)
    with torch.no_grad():
        given = conditioning.hidden_states(logits, input_ids=prompt, decoder_input_ids=canvas)
        expected = model.model(
            input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=logits.multiplied_out()
        ).last_hidden_state
        without = model.model(input_ids=prompt, decoder_input_ids=canvas).last_hidden_state
    conditioning.remove()
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(given, without, atol=1e-2)
