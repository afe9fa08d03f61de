"""Noise candidates that all rows share: what they add, that nothing is lost or biased, and errors before work."""

import itertools

import pytest
import torch
from bce_problem import CANDIDATES, problem
from torch.nn.functional import linear, softplus

from ggm_kernels import backends, linear_sigmoid_bce, native, sigmoid_bce
from ggm_kernels.ops import shared_sigmoid_bce

OP = "sigmoid_bce"
SHARED = torch.tensor([5, 0, 3, 5])
NAMES = ("hidden", "weight", "bias")


def with_shared(weight=None, **inputs):
    return {**problem(**inputs), "shared_candidates": SHARED, "shared_weight": weight}


@pytest.mark.parametrize(
    "weight", [None, 0.5, torch.tensor([0.1, 0.9, 0.4, 2.0]), torch.tensor([[0.3], [0.0], [1.0], [2.0]])]
)
def test_they_are_noise_candidates_of_every_row(backend, weight):
    inputs = problem()
    leaves = [inputs[name] for name in NAMES]
    f = linear(*leaves) + inputs["offset"][:, None]
    added = ((1.0 if weight is None else weight) * softplus(f[:, SHARED])).sum(1)
    expected = linear_sigmoid_bce(**inputs, backend="reference") + added
    loss = linear_sigmoid_bce(**with_shared(weight), backend=backend)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    upstream = torch.linspace(-1, 2, 4)
    expected = torch.autograd.grad(expected @ upstream, leaves)
    torch.testing.assert_close(gradients(with_shared(weight), upstream, backend), expected)


def gradients(inputs, upstream, backend=None):
    loss = linear_sigmoid_bce(**inputs, backend=backend)
    return torch.autograd.grad(loss @ upstream, [inputs[name] for name in NAMES])


def test_where_there_are_no_candidates_else(backend):
    inputs = {**with_shared(), "candidates": CANDIDATES[:, :0], "signal_weight": 1.0, "noise_weight": None}
    f = linear(*(inputs[name] for name in NAMES)) + inputs["offset"][:, None]
    torch.testing.assert_close(
        linear_sigmoid_bce(**inputs, backend=backend), softplus(f[:, SHARED]).sum(1), rtol=1e-5, atol=1e-6
    )


def test_a_weight_of_s_is_one_per_candidate_where_s_is_n(backend):
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4])
    by_candidate = linear_sigmoid_bce(**with_shared(weight[None]), backend=backend)
    assert torch.equal(linear_sigmoid_bce(**with_shared(weight), backend=backend), by_candidate)
    by_row = linear_sigmoid_bce(**with_shared(weight[:, None]), backend=backend)
    assert not torch.allclose(by_row, by_candidate)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_a_token_that_is_both_are_rounded_once(backend, dtype):
    """The row's own candidate a large term, the shared one a small term after it."""
    hidden = torch.ones(1, 1, dtype=dtype)
    weight = torch.zeros(3, 1, dtype=dtype, requires_grad=True)
    bias = torch.zeros(3, dtype=dtype, requires_grad=True)
    shared = torch.tensor([1] * 256)
    linear_sigmoid_bce(
        hidden, weight, torch.tensor([1]), 0.0, 4096.0, bias=bias, shared_candidates=shared, shared_weight=1.0,
        backend=backend,
    ).backward()  # fmt: skip
    assert weight.grad.flatten().tolist() == bias.grad.tolist() == [0, 2176, 0]


def test_merged_ones_keep_their_weight():
    tokens, weight = shared_sigmoid_bce.merged(torch.tensor([3, 1, 9, 3, -1, 3]), torch.arange(1.0, 7), 7)
    found = dict(zip(tokens.tolist(), weight.tolist(), strict=True))
    assert found == {0: 0, 1: 2, 3: 1 + 4 + 6, 6: 0}


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("shape", [(300, 50, 33, 70), (40, 60, 7, 20), (17, 900, 300, 500)])
def test_gradients_do_not_depend_on_threads(shape, sparse_grad):
    rows, vocab_size, hidden_size, count = shape
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(vocab_size, (rows, 2), generator=generator)
    inputs = problem(rows, vocab_size, hidden_size, candidates=candidates)
    inputs["shared_candidates"] = torch.randint(vocab_size, (count,), generator=generator)
    inputs |= {"shared_weight": torch.rand(count, generator=generator), "sparse_grad": sparse_grad}
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8, 16):
            torch.set_num_threads(threads)
            found.append([grad.to_dense() for grad in gradients(inputs, torch.linspace(-1, 2, rows))])
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, grads, found[0])) for grads in found)


def test_one_graph_serves_twice_and_frozen_inputs_need_no_gradient(backend):
    inputs = with_shared(0.3)
    leaves = [inputs[name] for name in NAMES]
    loss = linear_sigmoid_bce(**inputs, backend=backend).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss, leaves), first))
    for needed, expected in zip(NAMES, first, strict=True):
        given = {**inputs, **{name: inputs[name].detach() for name in NAMES if name != needed}}
        alone = torch.autograd.grad(linear_sigmoid_bce(**given, backend=backend).sum(), inputs[needed])
        torch.testing.assert_close(alone[0], expected)


def test_sparse_gradient_is_the_dense_one_in_a_row_per_token(backend):
    dense = gradients(with_shared(0.3), torch.ones(4), backend)[1]
    sparse = gradients({**with_shared(0.3), "sparse_grad": True}, torch.ones(4), backend)[1]
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert sparse._nnz() == CANDIDATES.numel() + len(SHARED)
    named = torch.cat([CANDIDATES.flatten(), SHARED]).unique().tolist()
    assert sparse.coalesce().indices()[0].tolist() == named


def test_they_compile_as_one_graph(backend):
    torch._dynamo.reset()
    inputs = with_shared(torch.tensor([0.1, 0.9, 0.4, 2.0]))
    leaves = [inputs[name] for name in NAMES]

    def loss():
        return linear_sigmoid_bce(**inputs, backend=backend).sum()

    expected = torch.autograd.grad(loss(), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), leaves), expected)


def test_autocast_does_not_round_the_product(backend):
    inputs = with_shared()
    expected = linear_sigmoid_bce(**inputs, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_sigmoid_bce(**inputs, backend=backend), expected)


def test_functional_gradients_second_derivatives_and_forward_mode(backend):
    inputs = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in with_shared(0.3).items()}

    def loss(hidden):
        return linear_sigmoid_bce(**{**inputs, "hidden": hidden}, backend=backend).sum()

    at = inputs["hidden"]
    leaf = at.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    assert torch.equal(torch.func.grad(loss)(at), gradient)
    with pytest.raises(NotImplementedError, match="linear_sigmoid_bce is differentiable once"):
        gradient.square().sum().backward()
    with pytest.raises(NotImplementedError, match="linear_sigmoid_bce does not support forward-mode"):
        torch.func.jvp(loss, (at,), (at,))


def test_gradcheck_in_float64():
    inputs = with_shared(torch.rand(4, dtype=torch.float64), dtype=torch.float64)

    def loss(*leaves):
        return linear_sigmoid_bce(**{**inputs, **dict(zip(NAMES, leaves, strict=True))})

    assert torch.autograd.gradcheck(loss, [inputs[name] for name in NAMES])
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_bce(x, CANDIDATES, 0.3, shared_candidates=SHARED), logits
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.skipif(not backends()["emulated"], reason="no emulated kernels")
def test_gradients_of_16_bits_leave_the_kernel_rounded(dtype):
    """As matrix units take them; on the CPU products are float32."""
    from ggm_kernels.native.shared_sigmoid_bce import _tile_kernels

    logits, weight, upstream = torch.randn(9, 40), torch.rand(37), torch.rand(9)
    out = torch.zeros(9, 40, dtype=dtype)
    kernels = _tile_kernels(native.EMULATED)
    kernels.gradient(logits[:, :37], None, None, weight, upstream, out[:, :37])
    expected = (upstream[:, None] * weight * logits[:, :37].sigmoid()).to(dtype)
    torch.testing.assert_close(out[:, :37], expected)
    assert not out[:, 37:].any()


# The law: docs/mathematics.md, "Candidates that all rows share"


def expectation(size, keeps):
    """Loss per row over all draws of `size` shared candidates, of which a row takes those that `keeps` says."""
    torch.manual_seed(0)
    logits, data = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 2])
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=size):
        for row in range(3):
            shared = torch.tensor(
                [token for token in draw if keeps(token, int(data[row]))], dtype=torch.int64
            )
            loss = sigmoid_bce(
                logits[row : row + 1],
                data[row : row + 1],
                1.0,
                shared_candidates=shared,
                shared_weight=0.7 / size,
            )
            total[row] += pi[list(draw)].prod() * loss[0]
    return total, softplus(-logits.gather(1, data[:, None]))[:, 0] + 0.7 * softplus(logits) @ pi


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_expectation_is_that_of_candidates_of_each_row(size):
    given, expected = expectation(size, lambda token, data: True)
    torch.testing.assert_close(given, expected)


def test_leaving_out_accidental_hits_would_be_seen():
    given, expected = expectation(2, lambda token, data: token != data)
    assert ((expected - given) > 0.01).all()


# Errors before work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shared_candidates": SHARED.float()}, TypeError, "shared_candidates: got dtype torch.float32"),
        (
            {"shared_candidates": SHARED[None]},
            ValueError,
            r"shared_candidates: got shape \(1, 4\); allowed: a 1-d",
        ),
        ({"shared_candidates": SHARED + 2}, IndexError, r"shared_candidates\[0\]: got 7; allowed: \[0, 7\)"),
        ({"shared_candidates": SHARED - 1}, IndexError, r"shared_candidates\[1\]: got -1"),
        ({"shared_candidates": None, "shared_weight": 1.0}, ValueError, "shared_weight: got a value without"),
        ({"shared_weight": torch.zeros(5)}, ValueError, r"shared_weight: got shape \(5,\); allowed: \(4,\)"),
        ({"shared_weight": torch.zeros(4).long()}, TypeError, "shared_weight: got dtype torch.int64"),
        ({"shared_weight": "1"}, TypeError, "shared_weight: got str; allowed: a tensor or a number"),
        (
            {"shared_weight": torch.zeros(4, requires_grad=True)},
            ValueError,
            "shared_weight: got a tensor that req",
        ),
    ],
)
def test_bad_arguments(backend, change, error, message):
    with pytest.raises(error, match=message):
        linear_sigmoid_bce(**{**with_shared(), **change}, backend=backend)
    rest = {name: value for name, value in {**with_shared(), **change}.items() if name.startswith("shared")}
    with pytest.raises(error, match=message):
        sigmoid_bce(torch.zeros(4, 7), CANDIDATES, 0.5, **rest, backend=backend)


def test_bias_and_offset_go_by_name():
    inputs = problem()
    given = (inputs["hidden"], inputs["weight"], CANDIDATES, 0.5, 0.5)
    for more in (inputs["bias"], inputs["offset"]):
        with pytest.raises(TypeError, match="positional"):
            linear_sigmoid_bce(*given, more)
    with pytest.raises(TypeError, match="positional"):
        sigmoid_bce(torch.zeros(4, 7), CANDIDATES, 0.5, 0.5, inputs["offset"])
