"""`commit` as an operator of PyTorch, and its errors before work."""

import math

import pytest
import torch

from ggm_kernels import NoiseLaw, commit

OP = "commit"
TRITON_IS_SLOW = True  # what is compiled is the operator, one for all backends


# The operator


def test_opcheck(backend):
    op = torch.ops.ggm_kernels.commit.default
    tokens, proposal = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    score, accepted = torch.rand(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    table = NoiseLaw(torch.rand(7).softmax(0)).table(torch.device("cpu"))
    per_row = (None, torch.tensor([1, 3]), None, torch.rand(2), None, torch.rand(2))
    for arguments in [
        (3, None, 0.5, None, 1.0, None, None, False, None, None, 1, 1, 2, None, None, None, backend),
        (
            *per_row,
            score > 0.2,
            True,
            table,
            None,
            7,
            1,
            0,
            torch.tensor(4),
            torch.arange(2),
            accepted,
            backend,
        ),
        (None,) * 6 + (None, True, None, 7, 7, 1, 0, None, None, accepted, backend),
    ]:
        torch.library.opcheck(op, (tokens, proposal, score, *arguments))


def test_compiles_as_one_graph_and_counts_do_not_recompile(backend):
    torch._dynamo.reset()
    proposal, score = torch.arange(20).view(2, 10), -torch.rand(2, 10)
    options = {"rest": "noise", "vocab_size": 7, "backend": backend}

    def run(tokens, count, budget, step):
        accepted = torch.zeros(2, 10, dtype=torch.bool)
        commit(
            tokens,
            proposal,
            score,
            count=count,
            budget=budget,
            seed=1,
            step=step,
            accepted=accepted,
            **options,
        )
        return tokens + 1, accepted

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for step in range(2, 6):
        ours, theirs = torch.zeros(2, 10).long(), torch.zeros(2, 10).long()
        given = compiled(ours, step, 0.75, step)
        for a, b in zip(given, run(theirs, step, 0.75, step), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(ours, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # constant, then symbolic
    limits = torch.tensor([1, 4]), torch.tensor(0.75)
    for a, b in zip(
        compiled(torch.zeros(2, 10).long(), *limits, 9),
        run(torch.zeros(2, 10).long(), *limits, 9),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_autograd_sees_that_tokens_were_written(backend):
    embedding, tokens = torch.nn.Embedding(5, 3), torch.zeros(2, 4, dtype=torch.int64)
    out = embedding(tokens).sum()
    score = torch.rand(2, 4, requires_grad=True)  # a score is a constant
    commit(tokens, tokens + 1, score, seed=1, step=0, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_inference_tensors(backend):
    with torch.inference_mode():
        tokens, accepted = torch.zeros(2, 4).long(), torch.zeros(2, 4) > 0
    for mode in (True, False):
        with torch.inference_mode(mode):
            commit(
                tokens,
                torch.ones(2, 4).long(),
                torch.rand(2, 4),
                count=2,
                seed=1,
                step=0,
                accepted=accepted,
                backend=backend,
            )
        assert (accepted.sum(1) == 2).all()


def test_what_is_written_has_memory_of_its_own(backend):
    tokens, mask = torch.zeros(2, 4).long(), torch.ones(2, 4) > 0
    arguments = {"score": torch.rand(2, 4), "seed": 1, "step": 0, "backend": backend}
    with pytest.raises(ValueError, match="proposal: got memory that is written as tokens"):
        commit(tokens, tokens, **arguments)
    with pytest.raises(ValueError, match="eligible: got memory that is written as accepted"):
        commit(tokens, tokens + 1, eligible=mask, accepted=mask, **arguments)


# Errors before work

TOKENS = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": TOKENS.float()}, TypeError, "tokens: got dtype torch.float32"),
        ({"tokens": TOKENS[:1].expand(2, 4)}, ValueError, r"tokens: got strides \(0, 1\)"),
        ({"proposal": TOKENS[:, :3]}, ValueError, r"proposal: got shape \(2, 3\); allowed: \(2, 4\)"),
        ({"proposal": TOKENS.float()}, TypeError, "proposal: got dtype torch.float32"),
        ({"score": TOKENS}, TypeError, "score: got dtype torch.int64"),
        ({"score": torch.zeros(2, 4).double()}, TypeError, "score: got dtype torch.float64"),
        ({"score": torch.zeros(2)}, ValueError, r"score: got shape \(2,\)"),
        ({"score": torch.zeros(2, 4, device="meta")}, ValueError, "score: got device meta; allowed: cpu"),
        ({"count": -1}, ValueError, "count: got -1; allowed: 0 <= count"),
        ({"count": 1.5}, TypeError, "count: got float; allowed: an int"),
        ({"count": torch.tensor([1.0, 2.0])}, TypeError, "count: got dtype torch.float32"),
        ({"count": torch.tensor([1])}, ValueError, r"count: got shape \(1,\); allowed: \(\) or \(2,\)"),
        ({"count": torch.tensor([1, -1])}, ValueError, r"count\[1\]: got -1; allowed: \[0, "),
        ({"threshold": math.nan}, ValueError, "threshold: got nan; allowed: -inf <= threshold <= inf"),
        ({"threshold": "0.9"}, TypeError, "threshold: got str; allowed: a float or a torch.Tensor"),
        ({"threshold": torch.tensor([0.5, math.nan])}, ValueError, r"threshold\[1\]: got nan"),
        ({"budget": -0.5}, ValueError, "budget: got -0.5; allowed: 0 <= budget <= inf"),
        ({"budget": True}, TypeError, "budget: got bool"),
        ({"budget": torch.tensor(-0.5)}, ValueError, "budget: got -0.5; allowed"),
        ({"budget": torch.tensor([math.nan, 1.0]).double()}, ValueError, r"budget\[0\]: got nan"),
        ({"eligible": TOKENS}, TypeError, "eligible: got dtype torch.int64; allowed: torch.bool"),
        ({"accepted": TOKENS}, TypeError, "accepted: got dtype torch.int64"),
        ({"accepted": torch.zeros(4) > 0}, ValueError, r"accepted: got shape \(4,\)"),
        ({"accepted": torch.zeros(1, 4).bool().expand(2, 4)}, ValueError, r"accepted: got strides \(0, 1\)"),
        ({"rest": "drop"}, ValueError, "rest: got 'drop'; allowed: 'keep' or 'noise'"),
        ({"rest": None}, TypeError, "rest: got NoneType; allowed: a str"),
        ({"rest": "noise"}, ValueError, "vocab_size: got None; allowed: the number of tokens"),
        ({"vocab_size": 0}, ValueError, "vocab_size: got 0"),
        ({"noise": NoiseLaw.absorbing(7, 7), "vocab_size": 8}, ValueError, "noise: got a law over 7 tokens"),
        ({"noise": torch.ones(7), "vocab_size": 7}, TypeError, "noise: got Tensor"),
        ({"noise": torch.ones(7)}, TypeError, "noise: got Tensor"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"step": 2**32}, ValueError, "step: got 4294967296"),
        ({"step": torch.tensor(-1)}, ValueError, "step: got -1"),
        ({"sample_ids": torch.tensor([0, 2**40])}, ValueError, r"sample_ids\[1\]: got 1099511627776"),
    ],
)  # fmt: skip
def test_bad_arguments_write_nothing(backend, change, error, message):
    arguments = {
        "tokens": TOKENS.clone(), "proposal": TOKENS + 5, "score": torch.rand(2, 4), "seed": 1, "step": 0,
        "backend": backend, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        commit(**arguments)
    assert not arguments["tokens"].any()
