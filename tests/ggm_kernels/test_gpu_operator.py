"""The ops as operators of PyTorch on a GPU: schema, fakes, gradients, one compiled graph. Run with -m gpu."""

import pytest
import torch

from ggm_kernels import corrupt, glauber_step, linear_glauber_step, linear_sigmoid_bce

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
VOCAB_SIZE, WIDTH = 301, 32


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, device=DEVICE)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def test_opcheck_of_corrupt(gpu_backend):
    op, tokens, keep_prob = torch.ops.ggm_kernels.corrupt.default, ids(3, 9), torch.rand(3, device=DEVICE)
    step = torch.tensor(4, device=DEVICE)
    sample_ids = torch.arange(3, device=DEVICE)
    torch.library.opcheck(
        op, (tokens, keep_prob, VOCAB_SIZE, 1, 2, None, sample_ids, None, None, 0, gpu_backend)
    )
    torch.library.opcheck(
        op, (tokens, keep_prob, VOCAB_SIZE, 1, 0, step, None, tokens > 3, None, 0, gpu_backend)
    )


def test_opcheck_of_the_losses(gpu_backend):
    candidates, offset = ids(4, 2), normal(4)
    weights = torch.rand(4, 2, device=DEVICE), torch.rand(4, 2, device=DEVICE)
    logits, hidden, weight, bias = (
        normal(4, VOCAB_SIZE),
        normal(4, WIDTH),
        normal(VOCAB_SIZE, WIDTH),
        normal(VOCAB_SIZE),
    )
    for leaf in (logits, hidden, weight, bias):
        leaf.requires_grad_()
    op = torch.ops.ggm_kernels.sigmoid_bce.default
    torch.library.opcheck(op, (logits, candidates, *weights, offset, gpu_backend))
    op = torch.ops.ggm_kernels.linear_sigmoid_bce.default
    torch.library.opcheck(op, (hidden, weight, candidates, *weights, bias, offset, False, gpu_backend))


def test_opcheck_of_the_steps(gpu_backend):
    tokens, positions = ids(2, 3), torch.tensor([0, 2], device=DEVICE)
    rate, by_product = torch.tensor([0.5, 0.1], device=DEVICE), torch.zeros(2, 2, device=DEVICE)
    op = torch.ops.ggm_kernels.glauber_step.default
    torch.library.opcheck(
        op,
        (
            tokens, normal(2, 2, VOCAB_SIZE), positions, 1, 2, None, 1.0, 3, 0.9, 0.1, rate, None,
            True, None, None, by_product, by_product.clone(), by_product.clone(), gpu_backend,
        ),
    )  # fmt: skip
    op, step = torch.ops.ggm_kernels.linear_glauber_step.default, torch.tensor(2, device=DEVICE)
    sample_ids = torch.arange(2, device=DEVICE)
    torch.library.opcheck(
        op,
        (
            tokens, normal(2, 2, WIDTH), normal(VOCAB_SIZE, WIDTH), normal(VOCAB_SIZE), positions, 1, 0, step, 1.0,
            None, None, None, None, None, False, sample_ids, tokens > 0, None, by_product, None, gpu_backend,
        ),
    )  # fmt: skip


def test_all_ops_compile_into_one_graph(gpu_backend):
    torch._dynamo.reset()
    tokens, keep_prob = ids(4, 16), torch.rand(4, device=DEVICE)
    positions = torch.arange(16, device=DEVICE)
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
        factors = normal(4, 16, WIDTH).requires_grad_(), normal(VOCAB_SIZE, WIDTH).requires_grad_()
        expected, ours = everything(*factors, step), compiled(*factors, step)
        for of_eager, of_compiled in zip(expected[:3], ours[:3], strict=True):
            assert int((of_eager != of_compiled).sum()) <= 1  # products may round otherwise
        torch.testing.assert_close(ours[3], expected[3])
        gradients = [torch.autograd.grad(result[3], factors) for result in (ours, expected)]
        torch.testing.assert_close(*gradients)
