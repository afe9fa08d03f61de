"""`linear_cross_entropy` as an operator of PyTorch, and its errors before work."""

import pytest
import torch
from cross_entropy_problem import leaves_of, problem
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ggm_kernels import linear_cross_entropy

OP = "linear_cross_entropy"
TRITON_IS_SLOW = True  # what is compiled is the operator, one for all backends
REDUCTIONS = ["none", "sum", "mean"]


# The operators


def test_opcheck(backend):
    inputs = problem()
    leaves, targets = leaves_of(inputs), inputs["targets"]
    scale = torch.where(targets == -100, 0.0, inputs["row_weight"].float())
    rest = (5.0, 0.01, -100, True, backend)
    for shift, shifted in [(inputs["logit_shift"], inputs["shifted_token"]), (None, None)]:
        arguments = (*leaves, targets, scale, shift, shifted, *rest)
        torch.library.opcheck(torch.ops.ggm_kernels.linear_cross_entropy.default, arguments)
        needs = [True, True, True]
        torch.library.opcheck(torch.ops.ggm_kernels.linear_cross_entropy_sum.default, (*arguments, needs))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_as_one_graph_with_gradients(backend, reduction):
    torch._dynamo.reset()
    inputs = problem()

    def value():
        loss, log_sum_exp = linear_cross_entropy(
            **inputs, reduction=reduction, return_log_sum_exp=True, backend=backend
        )
        alone = linear_cross_entropy(**inputs, reduction=reduction, backend=backend)
        return loss.sum() + 0.1 * log_sum_exp.square().sum() + alone.sum()

    expected = torch.autograd.grad(value(), leaves_of(inputs))
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), leaves_of(inputs)), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_an_error(backend, reduction):
    inputs = problem()
    loss = linear_cross_entropy(**inputs, reduction=reduction, backend=backend).sum()
    plain = torch.autograd.grad(loss, leaves_of(inputs), retain_graph=True)
    gradients = torch.autograd.grad(loss, leaves_of(inputs), create_graph=True)
    for gradient, same in zip(gradients, plain, strict=True):
        assert torch.equal(gradient.detach(), same)
        with pytest.raises(NotImplementedError, match=r"linear_cross_entropy\w* is differentiable once"):
            (loss + gradient.square().sum()).backward(retain_graph=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forward_mode_is_refused_by_name(backend, reduction):
    inputs = problem()
    for name in ("hidden", "weight", "bias", "row_weight", "logit_shift"):

        def loss(value, name=name):
            return linear_cross_entropy(**{**inputs, name: value}, reduction=reduction, backend=backend).sum()

        at = inputs[name].detach()
        refused = pytest.raises(
            NotImplementedError, match=r"ggm_kernels.linear_cross_entropy\w* does not support forward"
        )
        with refused, forward_ad.dual_level():
            loss(forward_ad.make_dual(at, at))
        if name in ("hidden", "weight", "bias"):
            with refused:
                torch.func.jvp(loss, (at,), (at,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_functional_gradients_are_those_of_autograd(backend, reduction):
    inputs = {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in problem().items()
    }
    for name in ("hidden", "weight", "bias"):

        def loss(value, name=name):
            return linear_cross_entropy(**{**inputs, name: value}, reduction=reduction, backend=backend).sum()

        leaf = inputs[name].clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf), leaf)[0]
        torch.testing.assert_close(torch.func.grad(loss)(inputs[name]), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_is_refused(backend, reduction):
    inputs = problem()
    hidden = torch.zeros(3, *inputs["hidden"].shape)
    with pytest.raises(NotImplementedError, match=r"linear_cross_entropy\w* does not support vmap; fold"):
        torch.vmap(
            lambda h: linear_cross_entropy(
                h, inputs["weight"], inputs["targets"], reduction=reduction, backend=backend
            )
        )(hidden)


def test_checkpointing_gives_the_same_gradient(backend):
    inputs = problem()

    def loss():
        return linear_cross_entropy(**inputs, reduction="mean", backend=backend)

    plain = torch.autograd.grad(loss(), leaves_of(inputs))
    again = torch.autograd.grad(checkpoint(loss, use_reentrant=False), leaves_of(inputs))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_are_made(backend, mode):
    inputs = problem()
    expected = linear_cross_entropy(**inputs, reduction="mean", backend=backend)
    with mode():
        loss = linear_cross_entropy(**inputs, reduction="mean", backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_casts_as_it_does_for_linear(backend, reduction):
    inputs = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(**inputs, reduction=reduction, backend=backend)
    assert loss.dtype == torch.float32
    cast = {name: inputs[name].detach().bfloat16() for name in ("hidden", "weight", "bias")}
    expected = linear_cross_entropy(**{**inputs, **cast}, reduction=reduction, backend=backend)
    torch.testing.assert_close(loss.detach(), expected)
    for gradient in torch.autograd.grad(loss.sum(), leaves_of(inputs)):
        assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


# Errors before work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(5, 4, dtype=torch.int64)}, TypeError, "hidden: got dtype torch.int64"),
        ({"hidden": torch.zeros(5)}, ValueError, r"hidden: got shape \(5,\); allowed: a 2-d tensor"),
        ({"weight": torch.zeros(7, 4).half()}, TypeError, "weight: got dtype torch.float16; allowed: torch.float32"),
        ({"weight": torch.zeros(7, 6)}, ValueError, r"weight: got shape \(7, 6\); allowed: \(V, 4\)"),
        ({"weight": torch.zeros(0, 4), "bias": None}, ValueError, r"weight: got shape \(0, 4\)"),
        ({"weight": torch.zeros(7, 4, device="meta")}, ValueError, "weight: got device meta; allowed: cpu"),
        ({"hidden": torch.zeros(5, 4, device="meta")}, ValueError, "weight: got device cpu; allowed: meta"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias: got shape \(6,\); allowed: \(7,\)"),
        ({"targets": torch.zeros(5)}, TypeError, "targets: got dtype torch.float32"),
        ({"targets": torch.zeros(4).long()}, ValueError, r"targets: got shape \(4,\); allowed: \(5,\)"),
        ({"targets": torch.tensor([0, -100, 7, 9, 1])}, IndexError, r"targets\[2\]: got 7; allowed: \[0, 7\)"),
        ({"targets": torch.tensor([0, -100, 3, -1, 1])}, IndexError, r"targets\[3\]: got -1"),
        ({"row_weight": torch.zeros(4)}, ValueError, r"row_weight: got shape \(4,\); allowed: \(5,\)"),
        ({"row_weight": torch.zeros(5).long()}, TypeError, "row_weight: got dtype torch.int64"),
        ({"row_weight": torch.ones(5, requires_grad=True)}, ValueError, "row_weight: got a tensor that requires"),
        ({"logit_shift": torch.ones(5, requires_grad=True)}, ValueError, "logit_shift: got a tensor that requires"),
        ({"logit_shift": None}, ValueError, "logit_shift: got None; allowed: a tensor, as shifted_token is given"),
        ({"shifted_token": None}, ValueError, "shifted_token: got None"),
        ({"shifted_token": torch.tensor([0, 9, 3, 7, 1])}, IndexError, r"shifted_token\[3\]: got 7"),
        ({"softcap": 0.0}, ValueError, "softcap: got 0.0; allowed: finite and 0 < softcap"),
        ({"softcap": float("nan")}, ValueError, "softcap: got nan"),
        ({"z_loss": -1.0}, ValueError, "z_loss: got -1.0"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: got float"),
        ({"reduction": "max"}, ValueError, "reduction: got 'max'; allowed: 'none', 'sum', 'mean'"),
        ({"return_log_sum_exp": 1}, TypeError, "return_log_sum_exp: got int"),
    ],
)  # fmt: skip
def test_bad_arguments(backend, change, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**problem(), **change}, backend=backend)


def test_float64_is_for_the_reference():
    inputs = problem(dtype=torch.float64)
    assert linear_cross_entropy(**inputs).dtype == torch.float64
    with pytest.raises(TypeError, match="backend: got 'cpu' for float64; allowed: 'reference'"):
        linear_cross_entropy(**inputs, backend="cpu")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_meta_tensors_tell_shapes_alone(reduction):
    inputs = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in problem().items()
    }
    loss = linear_cross_entropy(**inputs, reduction=reduction)
    assert loss.device.type == "meta" and loss.shape == ((5,) if reduction == "none" else ())
    gradients = torch.autograd.grad(loss.sum(), leaves_of(inputs))
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves_of(inputs)]
