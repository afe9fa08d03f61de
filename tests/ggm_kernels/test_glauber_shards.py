"""`glauber_race` and `glauber_settle`: shards of the vocabulary draw together what one step draws from all of it."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._subclasses import FakeTensorMode
from torch.nn.functional import linear

from ggm_kernels import glauber_race, glauber_settle, glauber_step
from ggm_kernels.ops.glauber_update import UPDATE_SCHEMA
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.reference import glauber_shards

FLOATS = ("log_sum_exp", "log_prob", "keep_prob", "raw_log_prob", "entropy", "margin")
ROWS = 12
CUTS = {
    "halves": (5000, [2500]),
    "three uneven": (5000, [100, 3333]),
    "many in one group": (3000, [1, 2, 700, 701]),
    "aligned": (5000, [RACE_GROUP, 3 * RACE_GROUP]),
    "one group in all": (900, [450]),
    "one shard": (5000, []),
}
OPTIONS = {
    "plain": {},
    "tempered": {"temperature": torch.tensor([0.5, 2.0])},
    "greedy": {"temperature": 0.0},
    "kept": {"noise_rate": 0.9},
    "normalized": {
        "noise_rate": 0.9,
        "normalize": True,
        "softcap": 3.0,
        "logit_shift": torch.tensor([1.0, -2.0]),
    },
}


def problem(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(2, ROWS, vocab_size, generator=generator) * 2
    logits[0, 1] = -math.inf
    logits[0, 2, 7] = math.nan
    logits[1, 3, : vocab_size // 2] = -math.inf
    tokens = torch.randint(vocab_size, (2, ROWS), generator=generator)
    return tokens, logits, {"seed": torch.tensor([3, -4]), "step": 5, "sample_ids": torch.tensor([2**39, 1])}


def filled(options):
    by_products = {
        name: torch.full((2, ROWS), 7.0) for name in FLOATS if name != "keep_prob" or "noise_rate" in options
    }
    return {**by_products, "argmax": torch.full((2, ROWS), 7)}


def both_halves(tokens, logits, cuts, noise, options):
    """A step whose vocabulary is cut; its by-products."""
    vocab_size = logits.shape[2]
    of_race = {
        name: value for name, value in options.items() if name in ("temperature", "softcap", "logit_shift")
    }
    of_settlement = {name: value for name, value in options.items() if name not in ("softcap", "logit_shift")}
    bounds = [0, *cuts, vocab_size]
    states = [
        glauber_race(
            logits[..., begin:end], tokens=tokens, vocab_offset=begin, vocab_size=vocab_size, **noise, **of_race
        )
        for begin, end in zip(bounds, bounds[1:], strict=False)
    ]  # fmt: skip
    by_products = filled(options)
    drawn = glauber_settle(
        tokens.clone(), states, vocab_size=vocab_size, **noise, **of_settlement, **by_products
    )
    return {"tokens": drawn, **by_products}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cut", CUTS)
def test_shards_draw_what_the_whole_draws(cut, options):
    vocab_size, cuts = CUTS[cut]
    tokens, logits, noise = problem(vocab_size)
    options = OPTIONS[options]
    expected = filled(options)
    expected["tokens"] = glauber_step(
        tokens.clone(), logits, None, **noise, **options, **expected, backend="reference"
    )
    result = both_halves(tokens, logits, cuts, noise, options)
    for name, value in expected.items():
        torch.testing.assert_close(
            result[name], value, equal_nan=True, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("fault", ["parts that are not joined", "groups numbered within a shard"])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    if fault == "parts that are not joined":
        monkeypatch.setattr(glauber_shards, "_joined", lambda contenders, temperature: contenders)
    else:
        right = glauber_shards._contender
        monkeypatch.setattr(
            glauber_shards, "_contender", lambda *a: right(*a)._replace(group=right(*a).group % 2)
        )
    with pytest.raises(AssertionError):
        test_shards_draw_what_the_whole_draws("three uneven", "plain")


def test_settlement_does_not_ask_for_an_order_of_shards():
    tokens, logits, noise = problem(3000)
    states = [
        glauber_race(logits[..., part], tokens=tokens, vocab_offset=part.start, vocab_size=3000, **noise)
        for part in (slice(0, 1500), slice(1500, 3000))
    ]
    results = [
        glauber_settle(tokens.clone(), order, vocab_size=3000, **noise) for order in (states, states[::-1])
    ]
    assert torch.equal(*results)


def _settle_in_a_process(rank: int, world: int, port: int) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 8, 16, generator=generator)
    weight, bias = torch.randn(5030, 16, generator=generator), torch.randn(5030, generator=generator)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    noise = {"seed": 1, "step": 2}
    bounds = torch.linspace(0, 5030, world + 1).long().tolist()
    own = slice(bounds[rank], bounds[rank + 1])
    state = glauber_race(
        hidden,
        weight[own],
        None,
        bias=bias[own],
        tokens=tokens,
        vocab_offset=own.start,
        vocab_size=5030,
        **noise,
    )
    states = [torch.empty_like(state) for _ in range(world)]
    dist.all_gather(states, state)
    glauber_settle(tokens, states, vocab_size=5030, **noise)
    whole = glauber_step(torch.zeros_like(tokens), linear(hidden, weight, bias), None, **noise)
    assert torch.equal(tokens, whole), rank
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_that_each_have_a_shard(world):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_settle_in_a_process, (world, port), nprocs=world)


# The operators


def both_of(tokens, hidden, weight, **options):
    """Both halves, of two shards: one from logits, one from hidden states."""
    half = weight.shape[0] // 2
    arguments = {"tokens": tokens, "vocab_size": weight.shape[0], "seed": 1, "step": 2}
    states = [
        glauber_race(linear(hidden, weight[:half]), vocab_offset=0, **arguments),
        glauber_race(hidden, weight[half:], vocab_offset=half, **arguments),
    ]
    return glauber_settle(states=states, **arguments, **options)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_both_halves_compile_as_one_graph(compiler):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=generator)
    weight = torch.randn(50, 4, generator=generator)
    log_prob, keep_prob = torch.zeros(2, 3), torch.zeros(2, 3)

    def run(tokens, noise_rate):
        by_products = {"log_prob": log_prob, "keep_prob": keep_prob}
        return both_of(tokens, hidden, weight, noise_rate=noise_rate, **by_products) + 1

    compiled = torch.compile(run, fullgraph=True, backend=compiler)
    for rate in (torch.ones(2), torch.tensor([0.5, 0.9])):
        ours, theirs = (torch.zeros(2, 3, dtype=torch.int64) for _ in range(2))
        results = []
        for call, tokens in ((compiled, ours), (run, theirs)):
            results.append((call(tokens, rate), tokens, log_prob.clone(), keep_prob.clone()))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
        assert rate.min() < 1 or (ours > 0).any()


def test_fake_and_meta_tensors_tell_shapes_alone():
    with FakeTensorMode():
        tokens = torch.zeros(2, 3, dtype=torch.int64)
        assert both_of(tokens, torch.randn(2, 3, 4), torch.randn(50, 4)) is tokens
    on_meta = [
        value.to("meta") for value in (torch.zeros(2, 3).long(), torch.zeros(2, 3, 4), torch.zeros(50, 4))
    ]
    assert both_of(*on_meta) is on_meta[0]


def test_opcheck():
    tokens, logits = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3, 5)
    of_race = (
        2, 9, torch.arange(3), 1, torch.tensor([1, -1]), 2, None, 1.0, torch.rand(2), torch.arange(2), 3.0,
        torch.ones(2), "reference",
    )  # fmt: skip
    ops = torch.ops.ggm_kernels
    torch.library.opcheck(ops.glauber_race.default, (tokens, logits, *of_race))
    factors = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)
    torch.library.opcheck(ops.linear_glauber_race.default, (tokens, *factors, *of_race))
    given = {
        "positions": torch.arange(3), "seed": 1, "step": 2, "temperature": 1.0, "normalize": False,
        "top_p_first": False, "noise_rate": torch.rand(2), "log_prob": torch.zeros(2, 3),
        "argmax": torch.zeros(2, 3).long(), "backend": "reference",
    }  # fmt: skip
    names = [argument.rsplit(" ", 1)[1] for argument in UPDATE_SCHEMA.partition(") ->")[0].split(", ")]
    states = ops.glauber_race(tokens, torch.randn(2, 3, 9), 0, *of_race[1:])[None]
    torch.library.opcheck(
        ops.glauber_settle.default, (tokens, states, 9, *(given.get(name) for name in names))
    )


def test_autograd_sees_that_tokens_were_written():
    embedding, tokens = torch.nn.Embedding(50, 3), torch.zeros(2, 3, dtype=torch.int64)
    out = embedding(tokens).sum()
    both_of(tokens, torch.randn(2, 3, 4), torch.randn(50, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_rows_without_a_law(monkeypatch):
    tokens, logits, noise = problem(900)
    state = glauber_race(logits, tokens=tokens, vocab_offset=0, vocab_size=900, **noise)
    monkeypatch.setattr("ggm_kernels.ops.glauber_step._has_warned", False)
    with pytest.warns(RuntimeWarning, match="nothing but -inf"):
        glauber_settle(tokens.clone(), [state], vocab_size=900, **noise)
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    before, keep_prob = tokens.clone(), torch.full(tokens.shape, 7.0)
    with pytest.raises(ValueError, match=r"states\[0, 1\]: got a row with a NaN or nothing but -inf"):
        glauber_settle(
            tokens, [state], vocab_size=900, **noise, noise_rate=0.5, normalize=True, keep_prob=keep_prob
        )
    assert torch.equal(tokens, before) and keep_prob.eq(7).all()


# Errors before work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_offset": 2}, ValueError, "vocab_offset: got 2; allowed: 0 <= vocab_offset < 2"),
        ({"vocab_offset": 0, "vocab_size": 4}, ValueError, "logits: got v = 5; allowed: 0 to vocab_size = 4"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0"),
        ({"backend": "triton"}, NotImplementedError, "backend: got 'triton'"),
        ({"backend": "foo"}, ValueError, "backend: got 'foo'; allowed: 'reference', 'cpu'"),
        ({"backend": 3}, TypeError, "backend: got int"),
        ({"bias": torch.zeros(5)}, ValueError, "bias: got a tensor without weight"),
        ({"positions": torch.tensor([0, 1, 3])}, IndexError, r"positions\[2\]: got 3"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "tokens": torch.zeros(2, 3, dtype=torch.int64),
        "vocab_offset": 0,
        "vocab_size": 6,
        "seed": 1,
        "step": 0,
    }
    with pytest.raises(error, match=message):
        glauber_race(torch.zeros(2, 3, 5), **{**arguments, **change})


STATE = torch.zeros(2, 3, glauber_shards.FIELDS, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"states": []}, ValueError, r"states: got an empty list; allowed: \(P, B, K, "),
        ({"states": None}, TypeError, r"states: got NoneType; allowed: \(P, B, K, "),
        ({"states": 3}, TypeError, "states: got int"),
        ({"states": [3]}, TypeError, r"states\[0\]: got int; allowed: a torch.Tensor"),
        ({"states": [STATE, STATE[:1]]}, ValueError, r"states\[1\]: got shape \(1, 3, \d+\); allowed: \(2, 3, "),
        ({"states": [STATE[0]]}, ValueError, r"states\[0\]: got shape \(3, \d+\); allowed: a 3-d tensor"),
        ({"states": [STATE, STATE.to("meta")]}, ValueError, r"states\[1\]: got device meta; allowed: cpu"),
        ({"states": [STATE.float()]}, TypeError, r"states\[0\]: got dtype torch.float32; allowed: torch.float64"),
        ({"states": STATE}, ValueError, "states: got shape .* allowed: a 4-d tensor"),
        ({"states": STATE[None, ..., :4]}, ValueError, r"states: got shape \(1, 2, 3, 4\)"),
        ({"states": STATE[None, :0]}, ValueError, r"states: got shape \(0, 3, "),
        ({"states": STATE[None][:0]}, ValueError, r"states: got shape \(0, 2, 3, "),
        ({"backend": "foo"}, ValueError, "backend: got 'foo'; allowed: 'reference', 'cpu'"),
        ({"backend": "cpu"}, NotImplementedError, "backend: got 'cpu'; allowed: 'reference' or None"),
        ({"keep_prob": torch.zeros(2, 3)}, ValueError, "keep_prob: got a tensor without noise_rate"),
        ({"log_prob": STATE[..., 0]}, TypeError, "log_prob: got dtype torch.float64"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_the_settlement(change, error, message):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    arguments = {"tokens": tokens, "states": [STATE], "vocab_size": 6, "seed": 1, "step": 0, **change}
    with pytest.raises(error, match=message):
        glauber_settle(**arguments)
    assert not tokens.any()


@pytest.mark.parametrize("name", ["sample_ids", "seed", "states"])
def test_what_is_settled_has_memory_of_its_own(name):
    tokens = torch.zeros(2, 3 * glauber_shards.FIELDS, dtype=torch.int64)
    states = tokens.view(torch.float64).view(1, 2, 3, -1) if name == "states" else STATE[None]
    given = {} if name == "states" else {name: tokens[:, 1]}
    with pytest.raises(ValueError, match=f"^{name}: got memory that is written as tokens"):
        glauber_settle(
            tokens, states, torch.arange(3), **{"vocab_size": 6, "seed": 1, "step": 0, **given}
        )  # fmt: skip
