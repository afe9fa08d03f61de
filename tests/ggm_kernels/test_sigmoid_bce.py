"""`sigmoid_bce` and `linear_sigmoid_bce`: the formula and its gradients."""

import mmap

import numpy as np
import pytest
import torch
from bce_problem import CANDIDATES, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, logsigmoid

from ggm_kernels import linear_sigmoid_bce, native, sigmoid_bce

OP = "sigmoid_bce"


def expected_loss(logits, candidates, signal, noise, offset=None):
    """By PyTorch's own log-sigmoid and autograd."""
    f = logits.gather(1, candidates.long())
    if offset is not None:
        f = f + offset[:, None]
    return -(signal * logsigmoid(f) + noise * logsigmoid(-f)).sum(1)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 9),
    count=st.integers(0, 5),
    vocab_size=st.integers(1, 40),
    hidden_size=st.integers(0, 17),
)
def test_loss_and_gradients_are_those_of_the_formula(backend, rows, count, vocab_size, hidden_size):
    candidates = torch.randint(vocab_size, (rows, count), generator=torch.Generator().manual_seed(1))
    inputs = problem(rows, vocab_size, hidden_size, candidates=candidates)
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
    signal, noise = inputs["signal_weight"].float(), inputs["noise_weight"].float()
    loss = linear_sigmoid_bce(**inputs, backend=backend)
    assert loss.dtype == torch.float32 and loss.shape == (rows,)
    logits = linear(*leaves)
    by_hand = expected_loss(logits, candidates, signal, noise, inputs["offset"])
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-5)
    full = sigmoid_bce(logits, candidates, signal, noise, offset=inputs["offset"], backend=backend)
    torch.testing.assert_close(full, by_hand, rtol=1e-5, atol=1e-5)
    if rows and count:
        row_weights = torch.linspace(-1, 2, rows)
        ours = torch.autograd.grad(loss @ row_weights, leaves)
        through_logits = torch.autograd.grad(full @ row_weights, leaves, retain_graph=True)
        theirs = torch.autograd.grad(by_hand @ row_weights, leaves)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(through_logits, theirs, rtol=1e-4, atol=1e-5)


def test_gradcheck_in_float64():
    inputs = problem(dtype=torch.float64)
    names = ("hidden", "weight", "bias")

    def loss(*leaves):
        return linear_sigmoid_bce(**{**inputs, **dict(zip(names, leaves, strict=True))}, backend="reference")

    assert torch.autograd.gradcheck(loss, [inputs[name] for name in names])
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_bce(x, CANDIDATES, 0.3, 0.9, backend="reference"), logits
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_torch_is(backend, dtype):
    inputs = problem(64, 7, 200, dtype, candidates=torch.randint(7, (64, 3)))
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in inputs.items()}
    signal, noise = exact["signal_weight"], exact["noise_weight"]
    logits = linear(exact["hidden"], exact["weight"], exact["bias"])
    truth = expected_loss(logits, inputs["candidates"], signal, noise, exact["offset"])
    in_torch = expected_loss(
        linear(inputs["hidden"], inputs["weight"], inputs["bias"]),
        inputs["candidates"], signal.to(dtype), noise.to(dtype), inputs["offset"],
    )  # fmt: skip
    ours = linear_sigmoid_bce(**inputs, backend=backend)
    assert ours.dtype == torch.float32
    assert (ours - truth).abs().max() <= (in_torch.double() - truth).abs().max() + 1e-5


def test_the_loss_of_a_whole_vocabulary_keeps_its_digits(backend):
    logits, everything = torch.randn(2, 50257), torch.arange(50257).expand(2, -1)
    truth = sigmoid_bce(logits.double(), everything, 0.3, backend="reference")
    loss = sigmoid_bce(logits, everything, 0.3, backend=backend)
    torch.testing.assert_close(loss.double(), truth, rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_repeated_candidates_are_summed_before_they_are_rounded(backend, dtype):
    # A large gradient first: in half precision, each of the small ones after it would be lost.
    logits = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
    candidates = torch.tensor([[3] * 257, [1] * 129 + [4] * 128])
    noise_weight = torch.tensor([4096.0] + [1.0] * 256)[None]
    sigmoid_bce(logits, candidates, 0.0, noise_weight, backend=backend).sum().backward()
    assert logits.grad.tolist() == [[0, 0, 0, 2176, 0], [0, 2112, 0, 0, 64]]


@pytest.mark.skipif(native.core is None, reason="no compiled core")
@pytest.mark.parametrize("isa", native.core.isas() if native.core else [])
@pytest.mark.parametrize("count", [1, 3, 21, 64, 200])
def test_instruction_sets_keep_every_digit_of_losses_and_gradients(isa, count):
    """Candidates fill lanes across rows; logits from where both terms count to where one is all."""
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(37, 50, generator=generator) * 10 ** torch.linspace(-3, 1.6, 50)
    logits[3, 5], logits[4, 6] = float("nan"), float("inf")
    candidates = torch.randint(50, (37, count), generator=generator)
    weights = [torch.rand(shape, generator=generator) for shape in [(37, count), (37, 1), (1, count)]]
    before = native.core.isa()
    native.core.select_isa(isa)
    try:
        for signal in (weights[0], weights[1], weights[2], torch.rand(count, 37).T):
            results = []
            for values, backend in ((logits, "cpu"), (logits.double(), "reference")):
                leaf = values.clone().requires_grad_()
                loss = sigmoid_bce(leaf, candidates, signal, weights[0], backend=backend)
                loss.backward(torch.linspace(-1, 2, 37).to(loss))
                results.append((loss.detach().float(), leaf.grad.float()))
            torch.testing.assert_close(*results, rtol=2e-6, atol=1e-6, equal_nan=True)
    finally:
        native.core.select_isa(before)


@pytest.mark.parametrize("count", [3, 16, 37])
def test_losses_do_not_depend_on_the_batch(backend, count):
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(20, 40, generator=generator)
    candidates = torch.randint(40, (20, count), generator=generator)
    signal = torch.rand(20, count, generator=generator)
    whole = sigmoid_bce(logits, candidates, signal, backend=backend)
    parts = [sigmoid_bce(logits[i:], candidates[i:], signal[i:], backend=backend)[0] for i in range(20)]
    # PyTorch rounds a softplus in another way where an element is one of the last few of a tensor.
    tolerance = 1e-6 if backend == "reference" else 0.0
    torch.testing.assert_close(torch.stack(parts), whole, rtol=tolerance, atol=0)


@pytest.mark.parametrize("f", [0.0, 20.0, 100.0, 1e4, 3e38])
def test_softplus_is_exact_far_out(backend, f):
    logits = torch.tensor([[f], [-f]])
    one = torch.zeros(2, dtype=torch.int64)
    loss = sigmoid_bce(logits, one, 1.0, 0.0, backend=backend)
    assert loss.tolist() == pytest.approx([torch.log1p(torch.exp(torch.tensor(-f))).item(), f or 0.6931472])


@pytest.mark.filterwarnings("ignore:invalid value")  # 0 * inf, which the interpreter computes and discards
def test_a_weight_of_zero_switches_its_term_off(backend):
    logits = torch.tensor([[float("inf")], [-float("inf")]], requires_grad=True)
    one = torch.zeros(2, dtype=torch.int64)
    loss = sigmoid_bce(logits, one, torch.tensor([1.0, 0.0]), backend=backend)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert logits.grad.flatten().tolist() == [0.0, 0.0]


def test_forms_of_the_weights_agree(backend):
    logits = problem()["weight"].detach()[:4] @ torch.randn(5, 7)
    expected = sigmoid_bce(
        logits, CANDIDATES, torch.full((4, 2), 0.25), torch.full((4, 2), 0.75), backend=backend
    )
    shapes = [(), (1,), (1, 1), (4, 1), (1, 2)]
    for signal in (0.25, np.float32(0.25), *(torch.full(shape, 0.25) for shape in shapes)):
        assert torch.equal(sigmoid_bce(logits, CANDIDATES, signal, backend=backend), expected)
    label = torch.tensor([True, False, True, True])
    one = CANDIDATES[:, 0].int()
    by_label = sigmoid_bce(logits, one, label, backend=backend)
    assert torch.equal(by_label, sigmoid_bce(logits, one[:, None], label.float()[:, None], backend=backend))


def test_twice_backward_through_one_graph_gives_twice_the_gradient(backend):
    inputs = problem()
    saved = {name: value.detach().clone() for name, value in inputs.items()}
    loss = linear_sigmoid_bce(**inputs, backend=backend).sum()
    loss.backward(retain_graph=True)
    once = {name: inputs[name].grad.clone() for name in ("hidden", "weight", "bias")}
    loss.backward()
    for name, gradient in once.items():
        torch.testing.assert_close(inputs[name].grad, 2 * gradient)
    for name, value in saved.items():
        assert torch.equal(inputs[name].detach(), value)


@pytest.mark.parametrize("needed", ["hidden", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(backend, needed):
    inputs = problem()
    everything = linear_sigmoid_bce(**inputs, backend=backend).sum()
    expected = torch.autograd.grad(everything, inputs[needed])[0]
    for name in {"hidden", "weight", "bias"} - {needed}:
        inputs[name].requires_grad_(False)
    linear_sigmoid_bce(**inputs, backend=backend).sum().backward()
    torch.testing.assert_close(inputs[needed].grad, expected)
    assert all(inputs[name].grad is None for name in {"hidden", "weight", "bias"} - {needed})


def test_sparse_gradient_is_the_dense_one(backend):
    inputs = problem()
    dense = torch.autograd.grad(linear_sigmoid_bce(**inputs, backend=backend).sum(), inputs["weight"])[0]
    linear_sigmoid_bce(**inputs, sparse_grad=True, backend=backend).sum().backward()
    sparse = inputs["weight"].grad
    assert sparse.is_sparse and sparse._nnz() == CANDIDATES.numel()
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert inputs["hidden"].grad is not None and inputs["bias"].grad is not None
    torch.optim.SGD([inputs["weight"]], lr=0.1).step()


def test_sparse_gradient_is_added_into_a_dense_one_in_place(backend):
    inputs = problem()
    linear_sigmoid_bce(**inputs, backend=backend).sum().backward()
    accumulated = inputs["weight"].grad
    once = accumulated.clone()
    linear_sigmoid_bce(**inputs, sparse_grad=True, backend=backend).sum().backward()
    assert inputs["weight"].grad is accumulated
    torch.testing.assert_close(accumulated, 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sparse_gradient_adds_repeated_tokens_in_float32(backend, dtype):
    """200 terms of one sign a token: one by one, in half precision, they stall."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(100, 4, generator=generator).to(dtype)
    weight = (torch.randn(9, 4, generator=generator) / 10).to(dtype).requires_grad_()
    candidates = torch.randint(3, 5, (100, 4), generator=generator)
    dense = weight.detach().double().requires_grad_()
    linear_sigmoid_bce(hidden.double(), dense, candidates, 0.0, 1.0).sum().backward()
    weight.grad = torch.zeros_like(weight)
    accumulated = weight.grad
    linear_sigmoid_bce(
        hidden, weight, candidates, 0.0, 1.0, sparse_grad=True, backend=backend
    ).sum().backward()
    assert weight.grad is accumulated
    torch.testing.assert_close(accumulated.double(), dense.grad, rtol=torch.finfo(dtype).eps, atol=0)


def test_sparse_gradient_names_the_candidates_and_nothing_else(backend):
    """A row more would move what optimisers keep of it."""
    inputs = problem()
    linear_sigmoid_bce(**inputs, sparse_grad=True, backend=backend).sum().backward()
    assert inputs["weight"].grad.coalesce().indices()[0].tolist() == CANDIDATES.unique().tolist()
    for shape in [(0, 2), (4, 0)]:
        empty = {**inputs, "candidates": torch.zeros(shape, dtype=torch.int64), "noise_weight": None}
        empty |= {"hidden": torch.zeros(shape[0], 5), "offset": None, "signal_weight": 0.5}
        loss = linear_sigmoid_bce(**empty, sparse_grad=True, backend=backend).sum()
        assert torch.autograd.grad(loss, inputs["weight"])[0]._nnz() == 0


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_gradients_do_not_depend_on_threads_or_runs(threads):
    # Many rows on few tokens, and enough of them to wake every thread.
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(9, (3000, 2), generator=generator)
    inputs = problem(3000, 9, 33, candidates=candidates)
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]

    def gradients():
        return torch.autograd.grad(linear_sigmoid_bce(**inputs).sum(), leaves)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = gradients()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            assert all(map(torch.equal, gradients(), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native.core is None, reason="no compiled core")
def test_large_gradients_need_no_choice_of_pages(monkeypatch):
    inputs = problem(4, 2**16, 64)  # a gradient of 16 MiB, of which few rows are written
    expected = torch.autograd.grad(linear_sigmoid_bce(**inputs, backend="reference").sum(), inputs["weight"])
    for advice in (mmap.MADV_NOHUGEPAGE, 9999):  # the latter is refused by the system
        monkeypatch.setattr(mmap, "MADV_NOHUGEPAGE", advice)
        given_gradient = torch.autograd.grad(linear_sigmoid_bce(**inputs).sum(), inputs["weight"])
        torch.testing.assert_close(given_gradient, expected)
    monkeypatch.delattr(mmap, "MADV_NOHUGEPAGE")
    linear_sigmoid_bce(**inputs).sum().backward()
    torch.testing.assert_close(inputs["weight"].grad, expected[0])


def test_float64_is_exact_far_out():
    f = torch.linspace(-50, 50, 201, dtype=torch.float64)
    loss = sigmoid_bce(f[:, None], torch.zeros(201, dtype=torch.int64), 0.3)
    exact = 0.3 * torch.log1p(torch.exp(-f)) + 0.7 * torch.log1p(torch.exp(f))
    torch.testing.assert_close(loss, exact, rtol=1e-14, atol=0)


def test_float64_is_the_references_alone():
    inputs = problem(dtype=torch.float64)
    assert linear_sigmoid_bce(**inputs).dtype == torch.float64
    with pytest.raises(TypeError, match="backend: got 'cpu' for float64; allowed: 'reference'"):
        linear_sigmoid_bce(**inputs, backend="cpu")
