"""`glauber_step` and `linear_glauber_step` as operators of PyTorch, and their errors before work."""

import math

import pytest
import torch
from operator_arguments import arguments_of_op

from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS

OP = "glauber_step"
TRITON_IS_SLOW = True  # what is compiled is the operator, one for all backends


# The operator


def test_opcheck(backend):
    op = torch.ops.ggm_kernels.glauber_step.default
    tokens, logits = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 2, 5)
    update = {
        "seed": 1, "step": 2, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "noise_rate": torch.tensor([0.5, 0.1]),
        "normalize": True, **{name: torch.zeros(2, 2) for name in BY_PRODUCTS[:3]},
    }  # fmt: skip
    torch.library.opcheck(op, (tokens, logits, torch.tensor([0, 2]), *arguments_of_op(update, backend)))
    op = torch.ops.ggm_kernels.linear_glauber_step.default
    factors = torch.randn(2, 2, 4), torch.randn(5, 4), torch.randn(5)
    update = {
        "seed": 1, "step": 0, "step_tensor": torch.tensor(2), "sample_ids": torch.arange(2), "frozen": tokens > 0,
        "log_prob": torch.zeros(2, 2),
    }  # fmt: skip
    positions = torch.tensor([[0, 2], [1, 0]])
    torch.library.opcheck(op, (tokens, *factors, positions, *arguments_of_op(update, backend)))
    update |= {
        "seed_tensor": torch.tensor([1, -1]), "temperature_tensor": torch.rand(2, 2),
        "top_k_tensor": torch.tensor([2, 3]), "top_p_tensor": torch.rand(2), "min_p_tensor": torch.rand(2, 2),
        "softcap": 3.0, "logit_shift": torch.ones(2), "mixture": torch.rand(2, 2),
        "entropy": torch.zeros(2, 2), "argmax": torch.zeros(2, 2, dtype=torch.int64), "top_p_first": True,
    }  # fmt: skip
    torch.library.opcheck(op, (tokens, *factors, positions, *arguments_of_op(update, backend)))


def test_compiles_as_one_graph(backend):
    torch._dynamo.reset()
    logits = torch.randn(2, 2, 5)

    def run(tokens, step):
        return (
            glauber_step(tokens, logits, torch.tensor([0, 2]), seed=1, step=step, top_k=3, backend=backend)
            + 1
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for step in range(4):
        ours, theirs = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
        assert torch.equal(compiled(ours, step), run(theirs, step))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_a_temperature_and_shapes_that_change(backend, dynamic):
    torch._dynamo.reset()

    def run(tokens, logits, temperature):
        positions = torch.tensor([2, 0])
        return glauber_step(
            tokens, logits, positions, seed=1, step=3, temperature=temperature, backend=backend
        )

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in range(2, 5):
        start, logits = torch.zeros(batch, batch + 2, dtype=torch.int64), torch.randn(batch, 2, 50)
        expected = run(start.clone(), logits, 0.5 + batch)
        assert torch.equal(compiled(start.clone(), logits, 0.5 + batch), expected)


def test_autograd_sees_that_tokens_were_written(backend):
    embedding, tokens = torch.nn.Embedding(5, 3), torch.zeros(2, 4, dtype=torch.int64)
    by_product = torch.zeros(2, 2)
    out = embedding(tokens).sum() + (by_product * torch.ones(2, 2, requires_grad=True)).sum()
    versions = tokens._version, by_product._version
    arguments = {"positions": torch.arange(2), "seed": 1, "step": 0, "backend": backend}
    glauber_step(tokens, torch.zeros(2, 2, 5), log_sum_exp=by_product, **arguments)
    linear_glauber_step(tokens, torch.zeros(2, 2, 3), torch.zeros(5, 3), **arguments)
    assert tokens._version >= versions[0] + 2 and by_product._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
    with torch.inference_mode():
        glauber_step(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 2, 5), **arguments)


# Errors before work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, TypeError, "tokens: got dtype torch.float32"),
        ({"tokens": torch.full((2, 4), 5), "noise_rate": 0.5}, IndexError, r"tokens\[0, 0\]: got 5; allowed: \[0, 5\)"),
        ({"logits": torch.zeros(2, 2, 5).double()}, TypeError, "logits: got dtype torch.float64.*float32 is enough"),
        ({"logits": torch.zeros(2, 5)}, ValueError, r"logits: got shape \(2, 5\); allowed: a 3-d tensor"),
        ({"logits": torch.zeros(3, 2, 5)}, ValueError, r"logits: got shape \(3, 2, 5\); allowed: \(2, K, ..\)"),
        ({"logits": torch.zeros(2, 2, 0)}, ValueError, "logits: got V = 0"),
        ({"positions": torch.tensor([0, 4])}, IndexError, r"positions\[1\]: got 4; allowed: \[0, 4\)"),
        ({"positions": torch.tensor([[0, 1], [-2, 2]])}, IndexError, r"positions\[1, 0\]: got -2"),
        ({"positions": torch.tensor([-1, 2])}, IndexError, r"positions\[0\]: got -1"),
        ({"positions": None}, ValueError, r"logits: got shape \(2, 2, 5\) with positions=None; allowed: \(2, 4, ..\)"),
        ({"positions": torch.tensor([3, 3])}, IndexError, "positions: got position 3 twice"),
        ({"positions": torch.tensor([3, 3, 1, 1]), "logits": torch.zeros(2, 4, 5)}, IndexError, "got position 3 twice"),
        ({"tokens": torch.zeros(1, 4).long().expand(2, 4)}, ValueError, r"tokens: got strides \(0, 1\)"),
        ({"positions": torch.tensor([[0, 1], [2, 2]])}, IndexError, r"positions\[1\]: got position 2 twice"),
        ({"positions": torch.tensor([0])}, ValueError, r"positions: got shape \(1,\); allowed: \(2, 2\) or \(2,\)"),
        ({"seed": 2**64}, ValueError, "seed: got"),
        ({"step": -1}, ValueError, "step: got -1"),
        ({"temperature": float("nan")}, ValueError, "temperature: got nan; allowed: finite and 0 <= temperature"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0"),
        ({"temperature": math.inf}, ValueError, "temperature: got inf"),
        ({"temperature": "hot"}, TypeError, "temperature: got str; allowed: a float"),
        ({"temperature": "1.0"}, TypeError, "temperature: got str; allowed: a float"),
        ({"top_k": 0}, ValueError, "top_k: got 0; allowed: 1 <= top_k.*None, or V and more, for no limit"),
        ({"top_p": 0.0}, ValueError, "top_p: got 0.0; allowed: finite and 0 < top_p <= 1 .None or 1 for all"),
        ({"top_p": 1.1}, ValueError, "top_p: got 1.1"),
        ({"min_p": -0.1}, ValueError, "min_p: got -0.1; allowed: finite and 0 <= min_p <= 1"),
        ({"top_k": torch.tensor([3, 0])}, ValueError, r"top_k\[1\]: got 0; allowed: 1 <= top_k .None, or V and more, for no"),
        ({"top_p": torch.tensor([0.5, 0.0])}, ValueError, r"top_p\[1\]: got 0.0; allowed: 0 < top_p <= 1 .None or 1 for all"),
        ({"temperature": torch.tensor([-1.0, 1.0])}, ValueError, r"temperature\[0\]: got -1.0; allowed: finite and 0 <= temp"),
        ({"noise_rate": torch.tensor([0.5, 1.5])}, ValueError, r"noise_rate\[1\]: got 1.5; allowed: \[0.0, 1.0\]"),
        ({"noise_rate": torch.tensor([0.5])}, ValueError, r"noise_rate: got shape \(1,\); allowed: \(2,\) or \(2, 2\)"),
        ({"noise_rate": 1.5}, ValueError, "noise_rate: got 1.5; allowed: finite and 0 <= noise_rate <= 1"),
        ({"seed": torch.tensor([1])}, TypeError, r"seed: got a torch.int64 tensor of shape \(1,\); allowed: an int or"),
        ({"filter_order": "p_min_k"}, ValueError, "filter_order: got 'p_min_k'; allowed: 'k_p_min', 'p_k_min'"),
        ({"softcap": 0.0}, ValueError, "softcap: got 0.0; allowed: finite and 0 < softcap"),
        ({"entropy": torch.zeros(2, 3)}, ValueError, r"entropy: got shape \(2, 3\); allowed: \(2, 2\)"),
        ({"argmax": torch.zeros(2, 2)}, TypeError, "argmax: got dtype torch.float32; allowed: torch.int64"),
        ({"noise": NoiseLaw(torch.ones(4) / 4)}, ValueError, "noise: got a law over 4 tokens"),
        ({"normalize": 1}, TypeError, "normalize: got int; allowed: a bool"),
        ({"log_prob": torch.zeros(2)}, ValueError, r"log_prob: got shape \(2,\); allowed: \(2, 2\)"),
        ({"log_sum_exp": torch.zeros(2, 2, dtype=torch.float64)}, TypeError, "log_sum_exp: got dtype torch.float64"),
        ({"log_sum_exp": torch.zeros(2, 2).T}, ValueError, r"log_sum_exp: got strides \(1, 2\); allowed: contiguous"),
        ({"keep_prob": torch.zeros(2, 2)}, ValueError, "keep_prob: got a tensor without noise_rate"),
        ({"sample_ids": torch.tensor([0, -1])}, ValueError, r"sample_ids\[1\]: got -1"),
        ({"frozen": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, r"frozen: got shape \(2, 3\); allowed: \(2, 4\)"),
    ],
)  # fmt: skip
def test_bad_arguments_write_nothing(backend, change, error, message):
    arguments = {
        "tokens": torch.zeros(2, 4, dtype=torch.int64), "logits": torch.zeros(2, 2, 5),
        "positions": torch.tensor([0, 1]), "seed": 1, "step": 0, "backend": backend, **change,
    }  # fmt: skip
    before = arguments["tokens"].clone()
    with pytest.raises(error, match=message):
        glauber_step(**arguments)
    assert torch.equal(arguments["tokens"], before)
