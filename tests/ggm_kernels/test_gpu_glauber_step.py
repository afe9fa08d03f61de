"""Steps by device code against the reference on the CPU: on a GPU with -m gpu, emulated where that is built."""

import math
import sys

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import NoiseLaw, backends, glauber_step, linear_glauber_step

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FILTERS = [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.8, "min_p": 0.01}]
BY_PRODUCTS = ("log_sum_exp", "log_prob", "keep_prob")


def rows_of(count, vocab_size, dtype=torch.float32, batch=2):
    """Arguments of a step on batch * count rows, on the CPU."""
    length = count + 3
    return {
        "tokens": torch.randint(vocab_size, (batch, length)),
        "logits": (torch.randn(batch, count, vocab_size) * 2 - 3).to(dtype),
        "positions": torch.stack([torch.randperm(length)[:count] for _ in range(batch)]),
        "seed": 2**64 - 3,
        "step": 7,
    }


def with_keeping(arguments):
    """Keep-or-replace with everything that goes with it."""
    batch, count = arguments["positions"].shape
    vocab_size = arguments["logits"].shape[2] if "logits" in arguments else arguments["weight"].shape[0]
    return {
        **arguments,
        "noise_rate": torch.rand(batch, count),
        "noise": NoiseLaw(torch.rand(vocab_size).softmax(0)) if vocab_size < 2**17 else None,
        "normalize": True,
        "frozen": torch.rand(arguments["tokens"].shape) < 0.1,
        "sample_ids": torch.randint(2**40, (batch,)),
    }


def step_on(device, backend, arguments, op=glauber_step, **changes):
    """Tokens after a step on tensors moved to `device`, back on the CPU."""
    arguments = {**arguments, **changes}
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    tokens = moved.pop("tokens").clone()
    return op(tokens, **moved, backend=backend).cpu()


def assert_nearly_equal(ours, theirs, of=100000):
    """One row in `of`, and one in a smaller sample, may meet a near tie."""
    assert int((ours != theirs).sum()) <= max(1, ours.numel() // of)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 3, 17, 4099, 50257, 50304])
@pytest.mark.parametrize("keeping", [False, True])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_glauber_step_equals_the_cpu(device_backend, device, dtype, vocab_size, keeping, filters):
    many = 500 if device == "cuda" else 100
    arguments = rows_of(many if vocab_size < 1000 else many // 25, vocab_size, dtype) | filters
    arguments = with_keeping(arguments) if keeping else arguments
    expected = step_on("cpu", "reference", arguments)
    assert_nearly_equal(step_on(device, device_backend, arguments), expected)
    step = torch.tensor(arguments["step"])
    assert_nearly_equal(step_on(device, device_backend, arguments, step=step), expected)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.3, 30.0, 1e30])
def test_glauber_step_equals_the_cpu_at_any_temperature(device_backend, device, temperature):
    arguments = rows_of(500, 301) | {"temperature": temperature}
    expected = step_on("cpu", "reference", arguments)
    assert_nearly_equal(step_on(device, device_backend, arguments), expected)


def test_glauber_step_of_many_rows_equals_the_cpu(device_backend, device):
    arguments = rows_of(100000 if device == "cuda" else 3000, 33)
    expected = step_on("cpu", "reference", arguments)
    assert int((step_on(device, device_backend, arguments) != expected).sum()) <= 2


def test_glauber_step_of_the_largest_vocabulary_equals_the_cpu(device_backend, device):
    arguments = rows_of(2, 2**22, batch=1)
    expected = step_on("cpu", "reference", arguments)
    assert_nearly_equal(step_on(device, device_backend, arguments), expected)


@pytest.mark.parametrize("filters", [{}, {"top_k": 9, "top_p": 0.9, "temperature": 0.7}], ids=str)
def test_by_products_of_a_step_equal_the_cpu(device_backend, device, filters):
    inf, nan = math.inf, math.nan
    arguments = with_keeping(rows_of(400, 5000)) | filters
    logits = arguments["logits"]
    logits[:, ::7, 3:4000], logits[:, 1::7], logits[:, 2::7, 4999] = -inf, -inf, inf
    logits[:, 3::7, 4:6], logits[:, 4::7, 4998] = inf, nan
    expected = {name: torch.zeros(2, 400) for name in BY_PRODUCTS}
    ours = {name: torch.zeros(2, 400, device=device) for name in BY_PRODUCTS}
    assert_nearly_equal(
        step_on(device, device_backend, arguments, **ours),
        step_on("cpu", "reference", arguments, **expected),
    )
    for name in BY_PRODUCTS:
        same = (ours[name].cpu() - expected[name]).abs() < 1e-4
        same |= (ours[name].cpu() == expected[name]) | (ours[name].cpu().isnan() & expected[name].isnan())
        assert int((~same).sum()) <= 1  # a near tie has another token


def test_layouts_of_a_step(device_backend, device):
    arguments = with_keeping(rows_of(40, 2000))
    expected = step_on("cpu", "reference", arguments)
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    tokens = moved.pop("tokens").T.contiguous().T.int()
    moved["logits"] = moved["logits"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    moved["positions"] = moved["positions"].T.contiguous().T.int()
    strided = torch.zeros(*tokens.shape, 2, dtype=torch.int32, device=device)
    strided[..., 1] = tokens
    glauber_step(strided[..., 1], **moved, backend=device_backend)
    assert_nearly_equal(strided[..., 1].cpu(), expected)
    assert not strided[..., 0].any()


@pytest.mark.parametrize("op", [glauber_step, linear_glauber_step])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}], ids=str)
def test_illegal_ids_of_a_step_do_no_harm(device_kernels, device, op, filters):
    arguments = with_keeping(rows_of(20, 301)) | filters
    if op is linear_glauber_step:
        arguments |= {"hidden": torch.randn(2, 20, 16), "weight": torch.randn(301, 16)}
        del arguments["logits"]
    expected = step_on(device, device_kernels, arguments, op)
    tokens, positions = arguments["tokens"].clone(), arguments["positions"].clone()
    bad_tokens = torch.tensor([-1, 301, 2**40, -(2**62)])
    tokens[0, positions[0, :4]] = bad_tokens
    positions[1, :4] = torch.tensor([-1, tokens.shape[1], 2**40, -(2**62)])
    result = step_on(device, device_kernels, arguments | {"tokens": tokens, "positions": positions}, op)
    assert torch.equal(result[0, positions[0, :4]], bad_tokens)
    good = positions[0, 4:], positions[1, 4:]
    for row in range(2):
        assert torch.equal(result[row, good[row]], expected[row, good[row]])
    untouched = arguments["positions"][1, :4]
    assert torch.equal(result[1, untouched], tokens[1, untouched])


@pytest.mark.parametrize("filters", [{}, {"top_k": 50, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("count", [3, 200])
@pytest.mark.parametrize("op", [glauber_step, linear_glauber_step])
def test_a_captured_step_follows_its_step(gpu_backend, op, count, filters):
    if gpu_backend == "reference":
        pytest.skip("the reference makes tensors from Python numbers, which a capture does not allow")
    tokens = torch.randint(5000, (1, count), device="cuda")
    if op is glauber_step:
        rows = (torch.randn(1, count, 5000, device="cuda"),)
    else:
        rows = torch.randn(1, count, 64, device="cuda"), torch.randn(5000, 64, device="cuda")
    arguments = {
        "positions": torch.arange(count, device="cuda"),
        "seed": 1,
        "backend": gpu_backend,
        **filters,
    }
    start, step = tokens.clone(), torch.tensor(0, device="cuda")
    op(tokens, *rows, **arguments, step=step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(tokens, *rows, **arguments, step=step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(tokens, *rows, **arguments, step=step)
    for value in (3, 9):
        tokens.copy_(start)
        step.fill_(value)
        graph.replay()
        assert torch.equal(tokens, op(start.clone(), *rows, **arguments, step=value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 20, 32, 200, 3000])
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5, "top_p": 0.9}], ids=str)
def test_linear_glauber_step_is_the_step_on_the_product(device_backend, device, dtype, count, filters):
    biases = [None, torch.randn(5003, dtype=dtype)]
    if device_backend == "emulated" and count > 1100:
        count, biases = 1100, biases[1:]  # of two sequences still more rows than are taken at a time
    arguments = rows_of(count, 5003, dtype) | filters
    del arguments["logits"]
    hidden, weight = torch.randn(2, count, 200, dtype=dtype), torch.randn(5003, 200, dtype=dtype) / 14
    for bias in biases:
        product = {"hidden": hidden, "weight": weight, "bias": bias}
        ours = step_on(device, device_backend, arguments | product, linear_glauber_step)
        logits = linear(*(None if value is None else value.to(device) for value in product.values()))
        assert_nearly_equal(ours, step_on(device, device_backend, arguments, logits=logits), of=1000)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_paths_of_the_linear_step_in_triton_agree(dtype, monkeypatch):
    assert backends()["triton"]  # loads the module
    module = sys.modules["ggm_kernels.triton.linear_glauber_step"]
    arguments = rows_of(300, 5003, dtype)
    del arguments["logits"]
    arguments |= {
        "hidden": torch.randn(2, 300, 200, dtype=dtype),
        "weight": torch.randn(5003, 200, dtype=dtype) / 14,
    }
    results = []
    for fused_rows, buffer_bytes in [(10**6, 2**26), (0, 2**26), (0, 2**19)]:
        monkeypatch.setattr(module, "_FUSED_ROWS", fused_rows)
        monkeypatch.setattr(module, "_BUFFER_BYTES", buffer_bytes)
        results.append(step_on("cuda", "triton", arguments, linear_glauber_step))
    assert_nearly_equal(results[0], results[1], of=300)
    assert_nearly_equal(results[1], results[2], of=300)


@pytest.mark.parametrize("filters", [{}, {"top_k": 50}], ids=str)
def test_the_linear_step_holds_no_whole_product(gpu_backend, filters):
    if gpu_backend == "reference":
        pytest.skip("the oracle is not made for this")
    hidden = torch.randn(1, 8192, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(50257, 256, device="cuda", dtype=torch.bfloat16)
    tokens, positions = (
        torch.zeros(1, 8192, dtype=torch.int64, device="cuda"),
        torch.arange(8192, device="cuda"),
    )
    arguments = {"seed": 1, "step": 0, "backend": gpu_backend, **filters}
    linear_glauber_step(tokens, hidden, weight, positions, **arguments)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_glauber_step(tokens, hidden, weight, positions, **arguments)
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20  # the whole product: 785 MiB


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}], ids=str)
def test_a_step_beyond_2_31_logits(gpu_backend, filters):
    if gpu_backend == "reference":
        pytest.skip("the oracle is not made for this")
    count, vocab_size, last = 43000, 50257, 20
    logits = torch.empty(1, count, vocab_size, dtype=torch.bfloat16, device="cuda").normal_()
    positions = torch.arange(count, device="cuda")
    arguments = {"seed": 1, "step": 0, "backend": gpu_backend, **filters}
    tokens = torch.zeros(1, count, dtype=torch.int64, device="cuda")
    glauber_step(tokens, logits, positions, **arguments)
    tail = torch.zeros_like(tokens)
    glauber_step(tail, logits[:, -last:].clone(), positions[-last:], **arguments)
    assert_nearly_equal(tokens[:, -last:], tail[:, -last:])
    assert tokens.unique().numel() > 1000
