"""Threads that take denormal numbers for 0, as torch.set_flush_denormal and libraries make them, read float16 as others do."""

import pytest
import torch

from ggm_kernels import commit, glauber_step, linear_glauber_step, linear_sigmoid_bce

OP = "glauber_step"
SIZES = (3, 17, 1000, 2500)  # few tokens, a group, several


@pytest.fixture
def flushing():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    yield
    torch.set_flush_denormal(False)


def near_zero(vocab_size: int, token: int) -> torch.Tensor:
    """Log-probabilities of a row that is sure of `token`: its own is a subnormal float16."""
    logits = torch.full((1, 1, vocab_size), -20.0)
    logits[..., token] = -1.2e-6
    return logits.half()


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_likeliest_token(backend, flushing, vocab_size, temperature):
    tokens, argmax = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    sure = near_zero(vocab_size, vocab_size - 1)
    options = {"seed": 0, "step": 0, "temperature": temperature, "backend": backend}
    glauber_step(tokens, sure, None, argmax=argmax, **options)
    assert int(argmax) == vocab_size - 1
    assert int(tokens) == vocab_size - 1 or temperature > 0


def test_products_that_are_subnormal(backend, flushing):
    weight = near_zero(300, 7)[0, 0, :, None]
    tokens, argmax = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    hidden = torch.ones(1, 1, 1, dtype=torch.float16)
    linear_glauber_step(
        tokens, hidden, weight, None, seed=0, step=0, temperature=0.0, argmax=argmax, backend=backend
    )
    assert (int(tokens), int(argmax)) == (7, 7)


@pytest.mark.parametrize("hidden_size", [1, 8, 19, 64])
def test_dot_products(backend, flushing, hidden_size):
    hidden = torch.full((1, hidden_size), 1000.0).half()
    weight = torch.full((1, hidden_size), 5e-5).half()
    loss = linear_sigmoid_bce(hidden, weight, torch.tensor([0]), 1.0, backend=backend)
    expected = torch.nn.functional.softplus(-hidden.double() @ weight.double().T)[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0.0)


def test_scores_keep_their_order(backend, flushing):
    scores = (torch.tensor([[3.0, 1.0, 4.0, 2.0, 5.0]]) * 1e-6).half()
    tokens, proposal = torch.zeros(1, 5, dtype=torch.int64), torch.arange(1, 6)[None]
    commit(tokens, proposal, scores, count=2, seed=0, step=0, backend=backend)
    assert tokens.tolist() == [[0, 0, 3, 0, 5]]
