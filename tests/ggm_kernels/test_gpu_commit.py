"""`commit` on a GPU against the reference on the CPU. Run with -m gpu."""

import pytest
import torch

from ggm_kernels import NoiseLaw, commit

pytestmark = pytest.mark.gpu


def problem(shape, dtype):
    score = (4 * torch.randn(shape)).to(dtype)
    score[:1] = score[:1].round()  # many equal ones
    return {
        "tokens": torch.full(shape, 99),
        "proposal": torch.randint(100, 200, shape, dtype=torch.int32),
        "score": -score.abs(),
        "eligible": torch.rand(shape) < 0.9,
        "accepted": torch.zeros(shape, dtype=torch.bool),
        "sample_ids": torch.randint(2**40, shape[:1]),
    }


def limits_of(batch, length):
    return {
        "count": torch.randint(0, length + 1, (batch,)),
        "threshold": -4 * torch.rand(batch),
        "budget": length * torch.rand(batch),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 31), (64, 1024), (5, 4096), (2, 4097), (2, 70001), (0, 4), (4, 0)]
)
def test_commit_has_the_bits_of_the_cpu(gpu_backend, shape, dtype):
    limits = limits_of(*shape)
    for names in [["count"], ["budget"], list(limits), []]:
        own = {name: limits[name] for name in names}
        options = {"rest": "noise", "noise": NoiseLaw(torch.rand(17).softmax(0)), "seed": 3}
        inputs = problem(shape, dtype)
        on_gpu = {name: value.cuda() for name, value in {**inputs, **own}.items()}
        commit(**inputs, **own, step=7, **options, backend="reference")
        commit(**on_gpu, step=torch.tensor(7, device="cuda"), **options, backend=gpu_backend)
        for name in ("tokens", "accepted"):
            assert torch.equal(on_gpu[name].cpu(), inputs[name])


def test_a_captured_commit_follows_its_step_and_limits(gpu_backend):
    if gpu_backend == "reference":
        pytest.skip("the reference makes tensors from Python numbers, which a capture does not allow")
    inputs = {name: value.cuda() for name, value in problem((4, 100), torch.float32).items()}
    step, count = torch.tensor(0, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    options = {"count": count, "step": step, "seed": 1, "rest": "noise", "vocab_size": 17}
    commit(**inputs, **options, backend=gpu_backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        commit(**inputs, **options, backend=gpu_backend)
    for value in (3, 9):
        step.fill_(value)
        count.copy_(torch.arange(4) * value)
        inputs["tokens"].fill_(99)
        graph.replay()
        given = inputs["tokens"].clone()
        inputs["tokens"].fill_(99)
        commit(**inputs, **{**options, "step": value}, backend="reference")
        assert torch.equal(given, inputs["tokens"])


def test_values_are_checked_where_it_is_asked_for(gpu_backend, monkeypatch):
    inputs = {name: value.cuda() for name, value in problem((2, 9), torch.float32).items()}
    options = {"count": torch.tensor([1, -1], device="cuda"), "seed": 1, "step": 0, "backend": gpu_backend}
    commit(**inputs, **options)  # must not synchronise, let alone raise
    assert not inputs["accepted"][1].any()
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with pytest.raises(ValueError, match=r"count\[1\]: got -1"):
        commit(**inputs, **options)
