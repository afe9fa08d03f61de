"""`glauber_race` and `glauber_settle`: shards of the vocabulary draw together what one step draws from all of it."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import linear

from ggm_kernels import glauber_race, glauber_settle, glauber_step
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


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_each_have_a_shard(world):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_settle_in_a_process, (world, port), nprocs=world)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_offset": 2}, ValueError, "vocab_offset: got 2; allowed: 0 <= vocab_offset < 2"),
        ({"vocab_offset": 0, "vocab_size": 4}, ValueError, "logits: got v = 5; allowed: 1 to vocab_size = 4"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0"),
        ({"backend": "triton"}, NotImplementedError, "backend: got 'triton'"),
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
    with pytest.raises(ValueError, match=r"states: got shape \(1, 2, 3, 4\)"):
        glauber_settle(arguments["tokens"], torch.zeros(1, 2, 3, 4).double(), vocab_size=6, seed=1, step=0)
