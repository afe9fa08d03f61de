"""By-products of `glauber_step` and `linear_glauber_step`: what the reference says, whatever else was asked for.

Vocabularies lie on both sides of every chunk, group and tile that a backend cuts them into.
"""

import itertools
import math
from importlib import import_module

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step

OP = "glauber_step"
BY_PRODUCTS = ("log_sum_exp", "log_prob", "keep_prob")
VOCAB_SIZES = [1, 15, 17, 1023, 1024, 1025, 2049, 9000]
LAWS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 3},
    {"top_p": 0.9},
    {"temperature": 0.0, "top_k": 3, "min_p": 0.1},
]
DECISIONS = [{}, {"noise_rate"}, {"noise_rate", "normalize"}, {"noise_rate", "noise", "frozen"}, {"frozen"}]


def arguments_of(vocab_size, decision):
    generator = torch.Generator().manual_seed(vocab_size)
    rows, length = 4, 6
    law = torch.rand(vocab_size, generator=generator) + 0.01
    everything = {
        "noise_rate": torch.rand(2, rows, generator=generator) * 0.2 + 0.8,
        "normalize": True,
        "noise": NoiseLaw(law / law.sum()),
        "frozen": torch.rand(2, length, generator=generator) < 0.4,
    }
    return {
        "tokens": torch.randint(vocab_size, (2, length), generator=generator),
        "logits": torch.randn(2, rows, vocab_size, generator=generator) * 2 - 3,
        "positions": torch.tensor([[5, 0, 3, 1], [2, 4, 1, 0]]),
        "seed": 3,
        "step": 7,
        **{name: everything[name] for name in decision},
    }


def by_products_of(arguments, backend, op=glauber_step):
    names = [name for name in BY_PRODUCTS if name != "keep_prob" or "noise_rate" in arguments]
    filled = {name: torch.full((2, 4), 77.0) for name in names}
    arguments = dict(arguments)
    tokens = op(arguments.pop("tokens").clone(), **arguments, **filled, backend=backend)
    return {"tokens": tokens, **filled}


def from_hidden(arguments):
    """The same step from hidden states, whose product with an identity is the logits."""
    arguments = dict(arguments)
    logits = arguments.pop("logits")
    rows = logits.flatten(0, 1)
    return {**arguments, "hidden": torch.eye(len(rows)).view(2, -1, len(rows)), "weight": rows.T.contiguous()}


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_by_product_of_every_option(backend, vocab_size):
    cases = list(itertools.product(LAWS, DECISIONS))
    if backend == "triton" and not torch.cuda.is_available():
        # Interpreted: every case at one of the sizes.
        cases = cases[VOCAB_SIZES.index(vocab_size) :: len(VOCAB_SIZES)]
    for law, decision in cases:
        arguments = {**arguments_of(vocab_size, decision), **law}
        expected = by_products_of(arguments, "reference")
        results = {
            "from logits": by_products_of(arguments, backend),
            "from hidden states": by_products_of(from_hidden(arguments), backend, linear_glauber_step),
        }
        for form, result in results.items():
            for name, value in expected.items():
                said = f"{name} {form}, {law}, {sorted(decision)}"
                torch.testing.assert_close(
                    result[name],
                    value,
                    equal_nan=True,
                    rtol=1e-5,
                    atol=1e-5,
                    msg=lambda m, s=said: f"{s}: {m}",
                )


def test_greedy_draws_are_certain(backend):
    """Probability 1 to the largest logit, however many the others are."""
    for vocab_size in (5, 5000, 9000):
        arguments = {**arguments_of(vocab_size, {}), "temperature": 0.0}
        assert by_products_of(arguments, backend)["log_prob"].eq(0).all()
        assert by_products_of(from_hidden(arguments), backend, linear_glauber_step)["log_prob"].eq(0).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_keep_probability_where_noise_or_signal_is_impossible(backend, normalize):
    """1 where the token cannot be noise; 0 where it can and cannot be signal; never NaN."""
    inf = math.inf
    logits = torch.tensor([-inf, 0.0, 1.0, -inf]).expand(1, 5, -1)
    tokens = torch.tensor([[0, 0, 3, 1, 1]])
    rate = torch.tensor([[0.0, 0.5, 0.5, 0.0, 1.0]])
    noise = NoiseLaw(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    keep_prob = torch.full((1, 5), 7.0)
    out = glauber_step(
        tokens.clone(), logits, torch.arange(5), seed=1, step=0, noise_rate=rate, noise=noise,
        normalize=normalize, keep_prob=keep_prob, backend=backend,
    )  # fmt: skip
    assert keep_prob.tolist() == [[1, 0, 1, 1, 0]]
    assert out[0, [0, 2, 3]].tolist() == [0, 3, 1] and out[0, 1] != 0


@pytest.mark.parametrize("op", [glauber_step, linear_glauber_step])
@pytest.mark.parametrize("asked", [[], ["keep_prob"], ["log_prob"], [*BY_PRODUCTS, "margin", "argmax"]])
@pytest.mark.parametrize(
    "options",
    [{"noise_rate"}, {"noise_rate", "normalize"}, {"mixture"}, {"noise_rate", "mixture"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_rows_without_a_law_say_nothing_and_stay(backend, op, asked, options):
    """Whether they are kept or noise is drawn, and whatever one logit of them seems to tell."""
    generator = torch.Generator().manual_seed(0)
    lawless = torch.arange(40) % 4 < 2
    logits = torch.randn(2, 40, 30, generator=generator)
    tokens = torch.randint(30, (2, 40), generator=generator)
    if op is glauber_step:
        logits[:, ::4] = -math.inf
        logits[:, 1::4, 7] = math.nan
        tokens[:, 1::8] = 7
        rows = (logits,)
    else:
        rows = (torch.where(lawless[:, None], math.nan, logits), torch.eye(30))
    everything = {
        "noise_rate": torch.rand(2, 40, generator=generator).round(decimals=1),  # 0 and 1 among them
        "mixture": torch.rand(2, 40, generator=generator).round(decimals=1),
        "normalize": True,
    }
    asked = [name for name in asked if name != "keep_prob" or "noise_rate" in options]
    by_products = {
        name: torch.full((2, 40), 7, dtype=torch.int64 if name == "argmax" else torch.float32)
        for name in asked
    }
    given = {name: everything[name] for name in options}
    out = op(tokens.clone(), *rows, None, seed=1, step=0, **given, **by_products, backend=backend)
    assert torch.equal(out[:, lawless], tokens[:, lawless])
    assert not torch.equal(out, tokens)
    for name, values in by_products.items():
        nothing = values == -1 if name == "argmax" else values.isnan()
        assert nothing[:, lawless].all(), name
        may_be_kept = name == "log_prob" and "noise_rate" in options
        assert not (nothing[:, ~lawless].all() if may_be_kept else nothing[:, ~lawless].any()), name


def test_frozen_rows_say_nothing(backend):
    """By-products of frozen rows are NaN from logits and from hidden states, lawful or not."""
    arguments = arguments_of(50, {"noise_rate", "normalize"})
    arguments["frozen"] = torch.ones(2, 6, dtype=torch.bool)
    for given, op in [(arguments, glauber_step), (from_hidden(arguments), linear_glauber_step)]:
        result = by_products_of(given, backend, op)
        assert torch.equal(result["tokens"], arguments["tokens"])
        assert all(result[name].isnan().all() for name in BY_PRODUCTS)


@pytest.mark.parametrize("op", [glauber_step, linear_glauber_step])
def test_frozen_rows_are_not_read(op):
    """A step on frozen rows alone takes no time that grows with the vocabulary, whatever is asked for."""
    from benchmarks.timing import median_seconds

    rows = (torch.zeros(1, 64, 20000),)
    if op is linear_glauber_step:
        rows = (torch.zeros(1, 64, 64), torch.zeros(20000, 64))
    by_products = {name: torch.zeros(1, 64) for name in BY_PRODUCTS}
    tokens, positions = torch.zeros(1, 64, dtype=torch.int64), torch.arange(64)

    def step(frozen):
        return median_seconds(lambda: op(
            tokens, *rows, positions, seed=1, step=0, noise_rate=torch.ones(1), normalize=True,
            frozen=torch.full((1, 64), frozen), **by_products, backend="cpu",
        ), 5)  # fmt: skip

    assert step(True) * 5 < step(False)


@pytest.mark.parametrize("vocab_size", [1000, 5000])
def test_frozen_rows_are_not_multiplied(vocab_size, monkeypatch):
    compiled, multiplied = import_module("ggm_kernels.native.glauber_step"), []
    product = compiled._logits

    def noted(rows, *rest):
        multiplied.append(len(rows))
        return product(rows, *rest)

    monkeypatch.setattr(compiled, "_logits", noted)
    rows = (torch.zeros(1, 8, 4), torch.zeros(vocab_size, 4))
    for drawn in (8, 2, 0):
        multiplied.clear()
        by_products = {name: torch.zeros(1, 8) for name in BY_PRODUCTS if name != "keep_prob"}
        frozen = torch.arange(8)[None] >= drawn
        linear_glauber_step(
            torch.zeros(1, 8, dtype=torch.int64), *rows, None, seed=1, step=0, frozen=frozen, **by_products,
            backend="cpu",
        )  # fmt: skip
        assert set(multiplied) == ({drawn} if drawn else set())


def test_expected_logits_are_the_product():
    arguments = arguments_of(17, {})
    factors = from_hidden(arguments)
    torch.testing.assert_close(linear(factors["hidden"], factors["weight"]), arguments["logits"])


@pytest.mark.parametrize("vocab_size", [7, 3000])
def test_no_by_product_but_the_sum_knows_how_far_logits_lie_from_zero(backend, vocab_size):
    arguments = arguments_of(vocab_size, {"noise_rate", "normalize"})
    arguments["logits"] = (16 * arguments["logits"]).round() / 16  # exact at both distances
    results = []
    for distance in (0.0, 1e6):
        names = ["log_prob", "raw_log_prob", "entropy", "margin", "keep_prob"]
        filled = {name: torch.full((2, 4), 77.0) for name in names}
        moved = {
            **arguments,
            "logits": arguments["logits"] + distance,
            "tokens": arguments["tokens"].clone(),
        }
        tokens = glauber_step(**moved, temperature=0.8, **filled, backend=backend)
        results.append({"tokens": tokens, **filled})
    near, far = results
    for name, value in near.items():
        torch.testing.assert_close(
            far[name], value, rtol=2e-6, atol=2e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("shift", [-1e4, -712.0, -705.0, 300.0, 705.0, 712.0, 1e4])
def test_sums_of_logits_far_from_zero(backend, shift, temperature):
    """On both sides of where a backend may come to compute exponents in another way."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2, 2100, generator=generator) * 2 + shift
    log_sum_exp, entropy = torch.empty(1, 2), torch.empty(1, 2)
    glauber_step(
        torch.zeros(1, 2, dtype=torch.int64), logits, None, seed=1, step=0, temperature=temperature,
        log_sum_exp=log_sum_exp, entropy=entropy, backend=backend,
    )  # fmt: skip
    law = (logits.double() / temperature).log_softmax(-1)
    expected = -(law.exp() * law).sum(-1)
    torch.testing.assert_close(entropy.double(), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(log_sum_exp.double(), logits.double().logsumexp(-1), rtol=2e-7, atol=2e-6)
