"""Schedulers of diffusers, and a step of DiffusionGemma as a whole, against the same on our kernels.

A step of the whole is what a request waits for beside the network: head, sampling, and the mean embedding
that the next step is conditioned on.
"""

import pytest
import torch
from torch.nn.functional import linear

from benchmarks import rivals
from benchmarks.problems.clients import SOFTCAP, Canvas, hidden_step, make_canvas, scheduler_step
from benchmarks.recording import Case
from ggm_kernels import linear_expected_embedding

# Requests and positions of a canvas; the last takes gigabytes of the originals, and minutes.
SIZES = [(1, 32), (1, 64)]
FULL_SIZES = [*SIZES, (1, 256), (8, 256)]
STEPS = ["EntropyBoundScheduler", "DiscreteDDIMScheduler", "step_correct", "BlockRefinementScheduler"]


def sizes_of(full: bool) -> list[tuple[int, int]]:
    """Sizes [B, L]."""
    return FULL_SIZES if full else SIZES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = sizes_of(metafunc.config.getoption("--bench-full"))
        metafunc.parametrize("size", sizes, ids=lambda size: f"B={size[0]}-L={size[1]}")


@pytest.fixture
def canvas(device, size) -> Canvas:
    return make_canvas(size, device)


def libraries():
    """Diffusers and ours for it, or skip."""
    theirs = rivals.require("diffusers", "diffusers")
    if not hasattr(theirs, "EntropyBoundScheduler"):
        rivals.skip("diffusers", f"{theirs.__version__} has no schedulers for discrete diffusion")
    from ggm_kernels.integrations import diffusers as ours

    return theirs, ours


@pytest.mark.parametrize("implementation", ["diffusers", "ggm_kernels"])
@pytest.mark.parametrize("name", STEPS)
def test_scheduler_from_logits(record, canvas, name, implementation):
    theirs, ours = libraries()
    logits, step = canvas.logits(), 3
    call = scheduler_step(theirs, name)
    rival = lambda: call(logits, step, canvas.tokens).prev_sample  # noqa: E731
    case = Case(f"{name}, from logits", canvas.size, canvas.tokens.device, rival=("diffusers", rival))
    if implementation == "diffusers":
        result = record(case, "diffusers", rival, rounds=3)
    else:
        mine = scheduler_step(ours, name)
        result = record(case, implementation, lambda: mine(logits, step, canvas.tokens).prev_sample, "ours")
    assert result.shape == canvas.tokens.shape


@pytest.mark.parametrize("implementation", ["product alone", "diffusers", "ggm_kernels"])
def test_entropy_bound_from_hidden_states(record, canvas, implementation):
    theirs, ours = libraries()
    step = 3
    product = lambda: linear(canvas.hidden, canvas.weight)  # noqa: E731
    case = Case(
        "EntropyBoundScheduler, from hidden states",
        canvas.size,
        canvas.tokens.device,
        rival=("product alone", product),
    )
    if implementation == "product alone":
        record(case, implementation, product, "floor", rounds=3)
        return
    if implementation == "diffusers":
        call, role = scheduler_step(theirs, "EntropyBoundScheduler"), "rival"
        run = lambda: call(canvas.logits(), step, canvas.tokens).prev_sample  # noqa: E731
    else:
        run, role = hidden_step(ours, canvas), "ours"
    assert record(case, implementation, run, role, rounds=3).shape == canvas.tokens.shape


@pytest.mark.parametrize("implementation", ["diffusers", "ggm_kernels"])
def test_whole_step(record, canvas, implementation):
    """Head, entropy-bound step, and the mean embedding of what it was drawn from."""
    theirs, ours = libraries()
    call, mine = (scheduler_step(module, "EntropyBoundScheduler") for module in (theirs, ours))

    def original() -> torch.Tensor:
        output = call(canvas.logits(), 3, canvas.tokens)
        return output.pred_logits.softmax(-1) @ canvas.weight

    def fused() -> torch.Tensor:
        factors = ours.LinearLogits(canvas.hidden, canvas.weight, None, SOFTCAP)
        tempered = mine(factors, 3, canvas.tokens).pred_logits
        return linear_expected_embedding(
            tempered.hidden.flatten(0, 1),
            tempered.weight,
            canvas.weight,
            softcap=SOFTCAP,
            temperature=tempered.temperature,
        ).view_as(canvas.hidden)

    case = Case("step of a pipeline", canvas.size, canvas.tokens.device, rival=("diffusers", original))
    is_ours = implementation == "ggm_kernels"
    result = record(
        case, implementation, fused if is_ours else original, "ours" if is_ours else "rival", rounds=3
    )
    assert result.isfinite().all()
    if is_ours and canvas.tokens.numel() <= 64:
        torch.testing.assert_close(result, original(), rtol=1e-3, atol=1e-3)
