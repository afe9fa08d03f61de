"""Device code with options in random combinations, against the float64 truth: on a GPU with -m gpu, or emulated."""

import functools

import pytest
import torch
from cross_entropy_cases import check_case
from expected_embedding_problem import OPTIONS, formula, problem
from loss_cases import check_loss
from random_cases import check_many, few
from step_cases import check_step

from ggm_kernels import (
    glauber_step,
    linear_cross_entropy,
    linear_expected_embedding,
    linear_glauber_step,
    linear_sigmoid_bce,
    sigmoid_bce,
)

CALLS = [
    (check_step, glauber_step),
    (check_step, linear_glauber_step),
    (check_loss, sigmoid_bce),
    (check_loss, linear_sigmoid_bce),
    (check_case, linear_cross_entropy),
]
# A Triton kernel is compiled for each combination of what is given.
CASES = {"cuda": 300, "reference": 100, "triton": 40}


def on_device(call, device):
    """The call on copies of its tensors on a device, whose results and changes come back."""

    @functools.wraps(call)
    def moved(**arguments):
        there = {name: moved_to(device, value) for name, value in arguments.items()}
        given = call(**there)
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and not value.requires_grad:
                value.copy_(there[name])
        return tuple(one.cpu() for one in given) if isinstance(given, tuple) else given.cpu()

    return moved


def moved_to(device, value):
    if not isinstance(value, torch.Tensor):
        return value
    if value.requires_grad:
        return value.to(device)
    return value.new_empty_strided(value.shape, value.stride(), device=device).copy_(value)


@pytest.mark.parametrize(("check", "call"), CALLS, ids=lambda value: value.__name__)
def test_random_cases_agree_with_the_truth(device_backend, device, check, call):
    count = CASES.get(device_backend) or few(device_backend)
    check_many(check, on_device(call, device), device_backend, count)


@pytest.mark.parametrize("call", [glauber_step, linear_cross_entropy])
def test_a_fault_on_the_way_is_seen(device_backend, device, call):
    def wrong(**arguments):
        return on_device(call, device)(**{**arguments, "softcap": None})

    check = {call: check for check, call in CALLS}[call]
    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check, wrong, device_backend, 40)


@pytest.mark.parametrize("options", OPTIONS)
def test_expected_embeddings_are_their_formula(device_backend, device, options):
    size = (600, 9000, 4, 6) if device == "cuda" else (7, 19, 5, 3)
    leaves = problem(size)
    options = OPTIONS[options](size[0], torch.Generator().manual_seed(2))
    moved = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    there = {name: moved_to(device, value) for name, value in options.items()}
    given = linear_expected_embedding(*moved[:3], bias=moved[3], backend=device_backend, **there)
    expected = formula(*leaves, **options)
    torch.testing.assert_close(given.cpu().double(), expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad(given, moved, grad.to(device))
    theirs = torch.autograd.grad(expected, leaves, grad.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
