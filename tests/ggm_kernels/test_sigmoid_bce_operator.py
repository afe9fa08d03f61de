"""`sigmoid_bce` and `linear_sigmoid_bce` as operators of PyTorch, and their errors before work."""

import pytest
import torch
from bce_problem import CANDIDATES, problem
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ggm_kernels import linear_sigmoid_bce, sigmoid_bce

OP = "sigmoid_bce"
TRITON_IS_SLOW = True  # what is compiled is the operator, one for all backends


# The operators


def test_opcheck(backend):
    inputs = problem()
    signal, noise = inputs["signal_weight"].float(), inputs["noise_weight"].float()
    leaves = (inputs["hidden"], inputs["weight"])
    op = torch.ops.ggm_kernels.linear_sigmoid_bce.default
    given = (*leaves, CANDIDATES, signal, noise)
    none, shared = (None, None, None), (torch.tensor([5, 0, 5]), None, torch.rand(3))
    torch.library.opcheck(op, (*given, inputs["bias"], inputs["offset"], *none, False, backend))
    torch.library.opcheck(op, (*given, None, None, *none, True, backend))
    torch.library.opcheck(op, (*given, inputs["bias"], inputs["offset"], *shared, False, backend))
    logits = torch.randn(4, 7, requires_grad=True)
    op = torch.ops.ggm_kernels.sigmoid_bce.default
    torch.library.opcheck(op, (logits, CANDIDATES, signal, noise, inputs["offset"], *none, backend))
    torch.library.opcheck(op, (logits, CANDIDATES, signal, noise, None, *shared, backend))


def test_compiles_as_one_graph_with_gradients(backend):
    torch._dynamo.reset()
    inputs = problem()

    def loss():
        return linear_sigmoid_bce(**inputs, backend=backend).sum()

    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
    expected = torch.autograd.grad(loss(), leaves)
    given_gradients = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    torch.testing.assert_close(given_gradients, expected)


def test_vmap_is_refused(backend):
    logits = torch.zeros(3, 4, 7)
    with pytest.raises(NotImplementedError, match="sigmoid_bce does not support vmap; fold"):
        torch.vmap(lambda x: sigmoid_bce(x, CANDIDATES, 0.5, backend=backend))(logits)


def test_a_second_derivative_is_an_error(backend):
    inputs = problem()
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
    logits = torch.randn(4, 7, requires_grad=True)
    for loss, of in [
        (linear_sigmoid_bce(**inputs, backend=backend).sum(), leaves),
        (linear_sigmoid_bce(**inputs, sparse_grad=True, backend=backend).sum(), leaves),
        (sigmoid_bce(logits, CANDIDATES, 0.5, backend=backend).sum(), [logits]),
    ]:
        plain = torch.autograd.grad(loss, of, retain_graph=True)
        gradients = torch.autograd.grad(loss, of, create_graph=True)
        for gradient, same in zip(gradients, plain, strict=True):
            assert torch.equal(gradient.detach().to_dense(), same.to_dense())
            with pytest.raises(NotImplementedError, match="sigmoid_bce is differentiable once"):
                (loss + gradient.to_dense().square().sum()).backward(retain_graph=True)


def losses(backend):
    """Each loss as a function of one tensor, that tensor, and the name in errors."""
    inputs = {name: value.detach() for name, value in problem().items()}
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    yield lambda x: sigmoid_bce(x, CANDIDATES, 0.5, backend=backend).sum(), logits, "sigmoid_bce"
    for name in ("hidden", "weight", "bias"):

        def linear(x, name=name):
            return linear_sigmoid_bce(**{**inputs, name: x}, backend=backend).sum()

        yield linear, inputs[name], "linear_sigmoid_bce"


def test_forward_mode_is_refused_by_name(backend):
    for loss, at, name in losses(backend):
        refused = pytest.raises(
            NotImplementedError, match=f"ggm_kernels.{name} does not support forward-mode"
        )
        with refused:
            torch.func.jvp(loss, (at,), (at,))
        with refused:
            torch.func.linearize(loss, at)
        with refused, forward_ad.dual_level():
            loss(forward_ad.make_dual(at, at))
        with refused:
            torch.func.jvp(torch.func.grad(loss), (at,), (at,))
    inputs = problem()
    for name in ("signal_weight", "noise_weight", "offset"):
        with pytest.raises(NotImplementedError, match="forward-mode"), forward_ad.dual_level():
            inputs_dual = {**inputs, name: forward_ad.make_dual(inputs[name], inputs[name])}
            linear_sigmoid_bce(**inputs_dual, backend=backend)


def test_forward_mode_is_refused_when_compiled(backend):
    torch._dynamo.reset()
    loss, at, _ = next(losses(backend))
    compiled = torch.compile(lambda x: torch.func.jvp(loss, (x,), (x,))[1], backend="eager")
    with pytest.raises(Exception, match="forward-mode"):
        compiled(at)


def test_functional_gradients_are_those_of_autograd(backend):
    for loss, at, name in losses(backend):
        leaf = at.clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf), leaf)[0]
        assert torch.equal(torch.func.grad(loss)(at), expected)
        value, pull = torch.func.vjp(loss, at)
        assert torch.equal(pull(torch.tensor(1.0))[0], expected) and torch.equal(value, loss(at))
        twice = torch.func.grad(lambda x, loss=loss: torch.func.grad(loss)(x).square().sum())
        with pytest.raises(NotImplementedError, match=f"{name} is differentiable once"):
            twice(at)
        with pytest.raises(NotImplementedError, match=f"{name}(_backward)? does not support (vmap|forward)"):
            torch.func.hessian(loss)(at)


def test_checkpointing_gives_the_same_gradient(backend):
    inputs = problem()
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
    plain = torch.autograd.grad(linear_sigmoid_bce(**inputs, backend=backend).sum(), leaves)
    again = checkpoint(lambda: linear_sigmoid_bce(**inputs, backend=backend).sum(), use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, leaves), plain, rtol=0, atol=0)


def test_autocast_takes_hidden_of_another_precision(backend):
    inputs = problem()
    layer = torch.nn.Linear(5, 5)
    with pytest.raises(TypeError, match="weight: got dtype torch.float32; allowed: torch.bfloat16"):
        linear_sigmoid_bce(**{**inputs, "hidden": inputs["hidden"].bfloat16()}, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = layer(inputs["hidden"])
        assert hidden.dtype == torch.bfloat16
        loss = linear_sigmoid_bce(**{**inputs, "hidden": hidden}, backend=backend)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, linear_sigmoid_bce(**{**inputs, "hidden": hidden.float()}, backend=backend)
    )
    loss.sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_a_tensor_subclass_is_as_good_as_a_tensor(backend):
    class Tagged(torch.Tensor):
        pass

    inputs = problem()
    expected = linear_sigmoid_bce(**inputs, backend=backend)
    tagged = inputs["weight"].detach().as_subclass(Tagged).requires_grad_()
    loss = linear_sigmoid_bce(**{**inputs, "weight": tagged}, backend=backend)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert tagged.grad.abs().sum() > 0


# Errors before work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "hidden: got dtype torch.int64"),
        ({"hidden": torch.zeros(4)}, ValueError, r"hidden: got shape \(4,\); allowed: a 2-d tensor"),
        ({"weight": torch.zeros(7, 5).half()}, TypeError, "weight: got dtype torch.float16; allowed: torch.float32"),
        ({"weight": torch.zeros(7, 6)}, ValueError, r"weight: got shape \(7, 6\); allowed: \(V, 5\)"),
        ({"weight": torch.zeros(0, 5), "bias": None}, ValueError, r"weight: got shape \(0, 5\); allowed: \(V, d\) with V"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias: got shape \(6,\); allowed: \(7,\)"),
        ({"candidates": CANDIDATES.float()}, TypeError, "candidates: got dtype torch.float32"),
        ({"candidates": CANDIDATES[:3]}, ValueError, r"candidates: got shape \(3, 2\); allowed: \(4,\) or \(4, C\)"),
        ({"candidates": CANDIDATES + 1}, IndexError, r"candidates\[2, 0\]: got 7; allowed: \[0, 7\)"),
        ({"candidates": CANDIDATES - 1}, IndexError, r"candidates\[0, 0\]: got -1"),
        ({"candidates": CANDIDATES[:, 1] + 4, "signal_weight": 0.5, "noise_weight": None}, IndexError, r"s\[0\]: got 7"),
        ({"signal_weight": torch.zeros(4)}, ValueError, r"signal_weight: got shape \(4,\); allowed: \(4, 2\)"),
        ({"signal_weight": torch.zeros(4, 2).long()}, TypeError, "signal_weight: got dtype torch.int64"),
        ({"noise_weight": torch.zeros(4, 3)}, ValueError, r"noise_weight: got shape \(4, 3\)"),
        ({"noise_weight": torch.zeros(4, 2, requires_grad=True)}, ValueError, "noise_weight: got a tensor that requires"),
        ({"offset": torch.zeros(3)}, ValueError, r"offset: got shape \(3,\); allowed: \(4,\)"),
        ({"offset": torch.zeros(4, requires_grad=True)}, ValueError, "offset: got a tensor that requires a gradient"),
    ],
)  # fmt: skip
def test_bad_arguments(backend, change, error, message):
    with pytest.raises(error, match=message):
        linear_sigmoid_bce(**{**problem(), **change}, backend=backend)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_vocabulary_of_none_is_refused(backend, rows):
    candidates = torch.zeros(rows, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=rf"logits: got shape \({rows}, 0\); allowed: \(N, V\) with V of at least 1"
    ):
        sigmoid_bce(torch.zeros(rows, 0), candidates, 0.5, backend=backend)
    with pytest.raises(
        ValueError, match=r"weight: got shape \(0, 3\); allowed: \(V, d\) with V of at least 1"
    ):
        linear_sigmoid_bce(torch.zeros(rows, 3), torch.zeros(0, 3), candidates, 0.5, backend=backend)


def test_other_devices_are_named(backend):
    hidden, weight, candidates = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight: got device meta; allowed: cpu"):
        linear_sigmoid_bce(hidden, weight.to("meta"), candidates, 0.5, backend=backend)
    with pytest.raises(TypeError, match="weight: got dtype torch.float16"):
        linear_sigmoid_bce(hidden.to("meta"), weight.half().to("meta"), candidates, 0.5, backend=backend)
