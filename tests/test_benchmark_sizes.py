"""What benchmarks measure on which device, and that what only a GPU measures by default works."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks import (
    problems,
    rivals,
    test_commit,
    test_corrupt,
    test_glauber_step,
    test_linear_sigmoid_bce,
    test_sampling,
    test_training_step,
)
from ggm.sampling import cuda_graphs

CPU = torch.device("cpu")
GPU_CACHE = 50 * 2**20  # bytes, of an H100
PRODUCTS = ["test_floor_matrix_product", "test_product_and_flashinfer", "test_ggm_kernels_linear"]


def every_choice():
    """Sizes of every benchmark, on both devices, few and all."""
    for on_gpu in (False, True):
        for full in (False, True):
            yield on_gpu, full, test_corrupt.sizes_of(on_gpu, full)
            yield on_gpu, full, test_commit.sizes_of(on_gpu, full)
            yield on_gpu, full, test_sampling.runs_of(on_gpu, full)
            yield on_gpu, full, test_training_step.sizes_of(on_gpu, full)
            for module in (test_glauber_step, test_linear_sigmoid_bce):
                for fixtures in (
                    ["size"],
                    ["size", "curve"],
                    ["linear_inputs"],
                    ["beyond_cache"],
                    ["frequent"],
                ):
                    yield on_gpu, full, module.sizes_of(fixtures, on_gpu, full)


def test_no_size_comes_twice():
    for _, _, sizes in every_choice():
        assert len(set(sizes)) == len(sizes)


def test_the_cpu_measures_nothing_of_the_gpus():
    glauber, head = test_glauber_step, test_linear_sigmoid_bce
    assert test_corrupt.sizes_of(False, False) == test_corrupt.SIZES
    assert glauber.sizes_of(["inputs"], False, False) == [problems.glauber_step.Size()]
    assert glauber.sizes_of(["inputs", "linear_inputs"], False, False) == glauber.CPU_LINEAR_SIZES
    assert head.sizes_of(["head"], False, False) == [problems.linear_sigmoid_bce.Size()]
    assert head.sizes_of(["head", "beyond_cache"], False, True) == []
    assert head.sizes_of(["head", "frequent"], False, True) == []
    assert not any(size.autocast for size in test_training_step.sizes_of(False, True))
    assert test_sampling.implementations_of(False) == ["rival", "ours"]


def test_few_and_many_rows_of_the_product_on_a_gpu():
    sizes = test_glauber_step.sizes_of(["linear_inputs"], True, False)
    assert {size.rows for size in sizes} >= {1, 16, 64, 256, 1024}
    assert max(size.vocab_size for size in sizes) * problems.glauber_step.HIDDEN_SIZE * 2 > 4 * GPU_CACHE
    assert test_glauber_step.sizes_of(["inputs"], True, False) == [problems.glauber_step.Size()]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_ask_for_those_sizes(name):
    function = getattr(test_glauber_step, name)
    assert "linear_inputs" in function.__code__.co_varnames[: function.__code__.co_argcount]


def test_some_sizes_are_beyond_a_gpus_cache():
    batch, length = max(test_corrupt.sizes_of(True, False))
    assert batch * length * 17 > 4 * GPU_CACHE
    (size,) = test_linear_sigmoid_bce.sizes_of(["beyond_cache"], True, False)
    assert 2 * size.rows * size.hidden_size * size.dtype.itemsize > 3 * GPU_CACHE
    assert size.vocab_size > 3 * size.rows  # few rows of the weight are read twice


def test_a_gpu_trains_the_smallest_gpt2_in_half_precision():
    (size,) = test_training_step.sizes_of(True, False)
    assert (size.depth, size.width, size.heads, size.length, size.vocab_size) == (12, 768, 12, 1024, 50257)
    assert size.autocast and "bfloat16" in test_training_step.case_of(size, CPU).op
    rows = size.batch * size.predicted
    assert any(
        head.rows == rows and head.dtype == torch.bfloat16
        for head in test_linear_sigmoid_bce.sizes_of([], True, False)
    )


# The benchmarks, small


SMALL = test_training_step.Size(4, 16, 8, vocab_size=50, width=16, depth=1, heads=2)


def by_hand(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    assert hidden.dtype == weight.dtype == by_hand.dtype
    return cross_entropy(linear(hidden, weight).float(), targets, reduction="sum")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("head", ["sigmoid_bce", "full_cross_entropy", "rival"])
def test_a_training_step_lowers_the_loss(head, autocast):
    training = test_training_step.Training(replace(SMALL, autocast=autocast), CPU)
    by_hand.dtype = torch.bfloat16 if autocast else torch.float32
    loss = training.cross_entropy_by(by_hand) if head == "rival" else getattr(training, head)
    training.head_alone(loss)()
    assert all(parameter.grad is None for parameter in training.model.parameters())
    losses = [training.step(loss) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}


def test_autocast_multiplies_in_half_precision():
    products = {}
    for autocast in (False, True):
        training = test_training_step.Training(replace(SMALL, autocast=autocast), CPU)
        layer = next(module for module in training.model.modules() if isinstance(module, torch.nn.Linear))
        layer.register_forward_hook(lambda *parts, at=autocast: products.update({at: parts[-1].dtype}))
        training.loss_by(training.sigmoid_bce)
    assert products == {False: torch.float32, True: torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_with_and_without_graphs(dtype, monkeypatch):
    monkeypatch.setattr(test_sampling, "DTYPES", {"cpu": dtype})
    monkeypatch.setattr(cuda_graphs, "check", lambda tokens: None)
    recorded = []
    monkeypatch.setattr(cuda_graphs, "record", lambda step, tokens: recorded.append(tokens) or step)
    setting = replace(test_sampling.SETTINGS[1], batch=2, length=8, vocab_size=50)
    setting = replace(setting, backbone=replace(setting.backbone, width=16, depth=1, heads=2))
    sampling = test_sampling.Sampling(setting, 4, CPU)
    assert not recorded and torch.equal(sampling.graphs(), sampling.ours())
    assert len(recorded) == 1 and sampling.evaluations == 2
    assert sampling.rival().shape == (2, 8) and sampling.evaluations == 2


# FlashInfer, which no CPU runs


@pytest.fixture
def flashinfer(monkeypatch):
    """A module in its place, on a device in a GPU's."""
    seen = []

    def sampling_from_logits(logits: torch.Tensor) -> torch.Tensor:
        seen.append((logits.shape, logits.dtype))
        return logits.argmax(-1).int()

    module = SimpleNamespace(sampling_from_logits=sampling_from_logits, seen=seen)
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(sampling=module))
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", module)
    monkeypatch.setattr(rivals, "_absent", {})
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: zeros(*shape))
    return module


def test_flashinfer_is_tried_and_given_float32(flashinfer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    draw = rivals.flashinfer()
    assert len(flashinfer.seen) == 1
    assert draw(torch.eye(3, dtype=torch.bfloat16)).tolist() == [0, 1, 2]
    assert flashinfer.seen[-1] == ((3, 3), torch.float32)


def test_flashinfer_that_does_not_work_is_listed(flashinfer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def broken(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("nvcc is missing\nat length")

    monkeypatch.setattr(flashinfer, "sampling_from_logits", broken)
    with pytest.raises(pytest.skip.Exception):
        rivals.flashinfer()
    assert rivals.absent() == {"flashinfer-python": "does not work here: nvcc is missing"}


def test_what_is_here_and_what_is_not_is_told(flashinfer, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rivals, "CROSS_ENTROPIES", [rivals.liger_kernel])
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    rivals.main()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "flashinfer-python: here"
    assert told[1].startswith("liger-kernel: ") and len(told) == 2


def test_flashinfer_needs_a_gpu(flashinfer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.skip.Exception):
        rivals.flashinfer()
    assert rivals.absent() == {"flashinfer-python": "needs a CUDA device"}
