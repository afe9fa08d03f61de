"""Device code as operators of PyTorch: schema, fakes, gradients, one compiled graph. On a GPU with -m gpu."""

import pytest
import torch
from operator_arguments import arguments_of_op

from ggm_kernels import corrupt, glauber_step, linear_glauber_step, linear_sigmoid_bce
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS

VOCAB_SIZE, WIDTH = 301, 32


def ids(*shape: int, device: str) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, device=device)


def opcheck(name: str, arguments: tuple, device: str) -> None:
    """Tensors of the arguments are moved; those of floats that are no leaves stay constants."""
    moved = [
        value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for value in arguments
    ]
    torch.library.opcheck(getattr(torch.ops.ggm_kernels, name).default, tuple(moved))


def test_opcheck_of_corrupt(device_backend, device):
    tokens, keep_prob = ids(3, 9, device="cpu"), torch.rand(3)
    start = tokens, keep_prob, VOCAB_SIZE, 1
    ends = [(2, None, torch.arange(3), None), (0, torch.tensor(4), None, tokens > 3)]
    for end in ends:
        opcheck("corrupt", (*start, *end, None, 0, device_backend), device)


@pytest.mark.parametrize("shared", [False, True])
def test_opcheck_of_the_losses(device_backend, device, shared):
    candidates, offset = ids(4, 2, device="cpu"), torch.randn(4)
    weights = torch.rand(4, 2), torch.rand(4, 2)
    shapes = [(4, VOCAB_SIZE), (4, WIDTH), (VOCAB_SIZE, WIDTH), (VOCAB_SIZE,)]
    logits, hidden, weight, bias = (torch.randn(shape, requires_grad=True) for shape in shapes)
    group = (ids(6, device="cpu"), None, torch.rand(6)) if shared else (None, None, None)
    opcheck("sigmoid_bce", (logits, candidates, *weights, offset, *group, device_backend), device)
    factors = hidden, weight, candidates, *weights
    opcheck("linear_sigmoid_bce", (*factors, bias, offset, *group, False, device_backend), device)


def test_opcheck_of_the_steps(device_backend, device):
    tokens, positions = ids(2, 3, device="cpu"), torch.tensor([0, 2])
    update = {
        "seed": 1, "step": 2, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "noise_rate": torch.tensor([0.5, 0.1]),
        "normalize": True, **{name: torch.zeros(2, 2) for name in BY_PRODUCTS[:3]},
    }  # fmt: skip
    opcheck(
        "glauber_step",
        (tokens, torch.randn(2, 2, VOCAB_SIZE), positions, *arguments_of_op(update, device_backend)),
        device,
    )
    update = {
        "seed": 0, "seed_tensor": torch.tensor([1, -1]), "step": 0, "step_tensor": torch.tensor(2),
        "temperature_tensor": torch.rand(2, 2), "top_k_tensor": torch.tensor([2, 3]), "top_p_tensor": torch.rand(2),
        "min_p_tensor": torch.rand(2, 2), "softcap": 3.0, "logit_shift": torch.ones(2), "mixture": torch.rand(2, 2),
        "sample_ids": torch.arange(2), "frozen": tokens > 0, "entropy": torch.zeros(2, 2),
        "argmax": torch.zeros(2, 2, dtype=torch.int64), "top_p_first": True,
    }  # fmt: skip
    factors = torch.randn(2, 2, WIDTH), torch.randn(VOCAB_SIZE, WIDTH), torch.randn(VOCAB_SIZE)
    opcheck(
        "linear_glauber_step", (tokens, *factors, positions, *arguments_of_op(update, device_backend)), device
    )


@pytest.mark.gpu
def test_all_ops_compile_into_one_graph(gpu_backend):
    torch._dynamo.reset()
    tokens, keep_prob = ids(4, 16, device="cuda"), torch.rand(4, device="cuda")
    positions = torch.arange(16, device="cuda")
    arguments = {"seed": 1, "backend": gpu_backend}

    def everything(hidden, weight, step):
        noisy, is_signal = corrupt(tokens, keep_prob, VOCAB_SIZE, step=step, **arguments)
        signal = is_signal.flatten().float()
        loss = linear_sigmoid_bce(hidden.flatten(0, 1), weight, noisy.flatten(), signal, backend=gpu_backend)
        with torch.no_grad():
            drawn = linear_glauber_step(noisy.clone(), hidden, weight, positions, step=step, **arguments)
            logits = hidden @ weight.T
            again = glauber_step(noisy.clone(), logits, positions, step=step, top_k=5, **arguments)
        return noisy, drawn, again, loss.sum()

    compiled = torch.compile(everything, fullgraph=True)
    for step in range(3):
        shapes = (4, 16, WIDTH), (VOCAB_SIZE, WIDTH)
        factors = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
        expected, ours = everything(*factors, step), compiled(*factors, step)
        for of_eager, of_compiled in zip(expected[:3], ours[:3], strict=True):
            assert int((of_eager != of_compiled).sum()) <= 1  # products may round otherwise
        torch.testing.assert_close(ours[3], expected[3])
        gradients = [torch.autograd.grad(result[3], factors) for result in (ours, expected)]
        torch.testing.assert_close(*gradients)
