"""Device code against the reference on the CPU: on a GPU with -m gpu, emulated where that is built."""

import pytest
import torch

from ggm_kernels import NoiseLaw, corrupt, linear_sigmoid_bce, sigmoid_bce

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# corrupt


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("vocab_size", [1, 2, 17, 50257, 2**31 - 1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 257), (300, 1025), (64, 1024), (0, 4), (4, 0)])
def test_corrupt_has_the_bits_of_the_cpu(device_backend, device, shape, vocab_size, dtype):
    tokens = torch.randint(vocab_size, shape).to(dtype)
    per_position = shape[0] % 2 == 1
    arguments = {
        "keep_prob": torch.rand(shape if per_position else shape[:1]),
        "frozen": tokens % 3 == 0 if per_position else None,
        "sample_ids": torch.randint(2**40, shape[:1]) if per_position else None,
    }
    noise = NoiseLaw(torch.rand(vocab_size).softmax(0)) if 1 < vocab_size < 2**20 else None
    options = {"vocab_size": vocab_size, "seed": 2**64 - 3, "noise": noise}
    expected = corrupt(tokens, **arguments, step=7, **options, backend="reference")
    moved = {name: None if value is None else value.to(device) for name, value in arguments.items()}
    for step in (7, torch.tensor(7, device=device)):
        noisy, is_signal = corrupt(tokens.to(device), **moved, step=step, **options, backend=device_backend)
        assert torch.equal(noisy.cpu(), expected[0])
        assert torch.equal(is_signal.cpu(), expected[1])


@pytest.mark.gpu
def test_corrupt_beyond_2_31_elements():
    length = 2**31 + 9
    tokens = torch.zeros(1, length, dtype=torch.int32, device="cuda")
    keep_prob = torch.zeros(1, device="cuda")
    results = [corrupt(tokens, keep_prob, 2**31 - 1, seed=1, backend=name)[0] for name in ("cuda", "triton")]
    assert torch.equal(*results)


def test_a_captured_corrupt_follows_its_step(gpu_backend):
    if gpu_backend == "reference":
        pytest.skip("the reference makes tensors from Python numbers, which a capture does not allow")
    tokens = torch.randint(17, (4, 33), device="cuda")
    keep_prob = torch.rand(4, device="cuda")
    step = torch.tensor(0, device="cuda")
    corrupt(tokens, keep_prob, 17, seed=1, step=step, backend=gpu_backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noisy, is_signal = corrupt(tokens, keep_prob, 17, seed=1, step=step, backend=gpu_backend)
    for value in (3, 9):
        step.fill_(value)
        graph.replay()
        expected = corrupt(tokens, keep_prob, 17, seed=1, step=value, backend="reference")
        assert torch.equal(noisy, expected[0])
        assert torch.equal(is_signal, expected[1])


def test_values_are_checked_where_it_is_asked_for(device_backend, device, monkeypatch):
    tokens = torch.full((2, 3), 9, device=device)
    keep_prob = torch.rand(2, device=device)
    corrupt(tokens, keep_prob, 7, seed=1, backend=device_backend)  # must not synchronise, let alone raise
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    with pytest.raises(IndexError, match=r"tokens\[0, 0\]: got 9"):
        corrupt(tokens, keep_prob, 7, seed=1, backend=device_backend)


# sigmoid_bce


def head(dtype, rows=100, count=3, vocab_size=301, hidden_size=200):
    return {
        "hidden": torch.randn(rows, hidden_size, dtype=dtype),
        "weight": torch.randn(vocab_size, hidden_size, dtype=dtype) * 0.1,
        "bias": torch.randn(vocab_size, dtype=dtype),
        "offset": torch.randn(rows),
        "candidates": torch.randint(vocab_size, (rows, count)),
        "signal_weight": torch.rand(rows, count),
        "noise_weight": torch.rand(rows, count),
    }


def loss_and_gradients(inputs, backend, leaves=("hidden", "weight", "bias")):
    inputs = {name: value.detach().requires_grad_(name in leaves) for name, value in inputs.items()}
    loss = linear_sigmoid_bce(**inputs, backend=backend)
    loss.backward(torch.linspace(-1, 2, len(loss), device=loss.device))
    return [loss.detach().cpu(), *(inputs[name].grad.cpu() for name in leaves)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 200, 201, 768, 4096])
@pytest.mark.parametrize("count", [1, 5])
def test_linear_sigmoid_bce_equals_the_cpu(device_backend, device, dtype, hidden_size, count):
    inputs = head(dtype, hidden_size=hidden_size, count=count)
    expected = loss_and_gradients(inputs, "reference")
    given = loss_and_gradients({name: value.to(device) for name, value in inputs.items()}, device_backend)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_bce_equals_the_cpu(device_backend, device, dtype):
    logits, candidates = torch.randn(50, 301, dtype=dtype), torch.randint(301, (50, 4))
    results = []
    for place, backend in (("cpu", "reference"), (device, device_backend)):
        leaf = logits.to(place, copy=True).requires_grad_()
        loss = sigmoid_bce(leaf, candidates.to(place), 0.3, backend=backend)
        loss.sum().backward()
        results.append((loss.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_candidates_are_summed_before_they_are_rounded(device_kernels, device, dtype):
    # A large gradient first: in half precision, each of the small ones after it would be lost.
    logits = torch.zeros(2, 5, dtype=dtype, device=device, requires_grad=True)
    candidates = torch.tensor([[3] * 257, [1] * 129 + [4] * 128], device=device)
    noise_weight = torch.tensor([4096.0] + [1.0] * 256, device=device)[None]
    sigmoid_bce(logits, candidates, 0.0, noise_weight, backend=device_kernels).sum().backward()
    assert logits.grad.tolist() == [[0, 0, 0, 2176, 0], [0, 2112, 0, 0, 64]]


def test_gradients_are_bitwise_equal_from_run_to_run(device_kernels, device):
    inputs = {key: value.to(device) for key, value in head(torch.float32, rows=5000, vocab_size=50).items()}
    first = loss_and_gradients(inputs, device_kernels)
    for _ in range(4):
        for ours, theirs in zip(loss_and_gradients(inputs, device_kernels), first, strict=True):
            assert torch.equal(ours, theirs)


def test_illegal_candidates_do_no_harm(device_kernels, device):
    inputs = {key: value.to(device) for key, value in head(torch.float32).items()}
    inputs["candidates"][0] = torch.tensor([-5, 2**40, 301], device=device)
    loss = loss_and_gradients(inputs, device_kernels)
    logits = torch.zeros(100, 301, device=device, requires_grad=True)
    sigmoid_bce(logits, inputs["candidates"], 0.3, backend=device_kernels).sum().backward()
    assert all(torch.isfinite(part).all() for part in loss)
    assert not logits.grad[0].any()
