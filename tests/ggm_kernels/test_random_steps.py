"""`glauber_step` with options in random combinations, against the float64 truth of tests/truth.py, by-products included.

tests/random_cases.py tells how many; `check_step` runs one case.
"""

import math

import numpy as np
import pytest
import torch
import truth
from random_cases import DTYPES, SIZES, SMALL, Draw, check_many, few, many

from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step

OP = "glauber_step"
STEPS = [glauber_step, linear_glauber_step]


# Options of a step: how each is drawn. None is "not given". A new option is one line here and a field of truth.Row.

OPTIONS = {
    "temperature": lambda draw: draw.choice([1.0, 1.0, 0.0, draw.uniform(0.1, 3.0), 1e-30, 1e30]),
    "top_k": lambda draw: draw.choice([None, None, 1, draw.randint(1, 60), 2**40]),
    "top_p": lambda draw: draw.choice([None, None, 1.0, 1e-6, draw.uniform(0.05, 0.999)]),
    "min_p": lambda draw: draw.choice([None, None, 0.0, 1.0, draw.uniform(0.001, 0.5)]),
    "normalize": lambda draw: draw.random() < 0.5,
}
BY_PRODUCTS = list(truth.BY_PRODUCTS)


def draw_step(draw):
    """Arguments that both calls share: those of logits [B, K, V] are drawn after them."""
    vocab_size = draw.choice(SIZES if draw.random() < 0.1 else SMALL)
    batch, length = draw.randint(1, 3), draw.randint(1, 6)
    count = draw.randint(1, length)
    ids = draw.choice([torch.int32, torch.int64])
    positions = torch.stack([torch.randperm(length, generator=draw.generator)[:count] for _ in range(batch)])
    if draw.random() < 0.3:
        positions = positions[0]
    arguments = {
        "tokens": draw.layout(draw.integers(vocab_size, batch, length).to(ids)),
        "positions": draw.layout(positions.to(draw.choice([torch.int32, torch.int64]))),
        "seed": draw.getrandbits(64),
        "step": draw.choice([0, 2**32 - 1, draw.getrandbits(32)]),
        "sample_ids": draw.maybe(0.5, lambda: torch.tensor([draw.getrandbits(40) for _ in range(batch)])),
        "frozen": draw.maybe(0.4, lambda: draw.layout(draw.uniform_tensor(batch, length) < 0.3)),
        **{name: make(draw) for name, make in OPTIONS.items()},
    }
    if draw.random() < 0.3:
        arguments["step"] = torch.tensor(arguments["step"])
    if draw.random() < 0.6:
        shape = draw.choice([(batch,), (batch, count)])
        rate = draw.uniform_tensor(*shape)
        rate = torch.where(draw.uniform_tensor(*shape) < 0.15, rate.round(), rate)  # 0 and 1 among them
        arguments["noise_rate"] = draw.layout(rate.to(draw.choice(DTYPES)))
        arguments["noise"] = draw.maybe(0.5, lambda: noise_law(draw, vocab_size))
    for name in BY_PRODUCTS:
        if draw.random() < 0.6 and (name != "keep_prob" or "noise_rate" in arguments):
            arguments[name] = torch.full((batch, count), 77 if name == "argmax" else 77.0)
    return arguments, batch, count, vocab_size


def noise_law(draw, vocab_size):
    weights = draw.uniform_tensor(vocab_size).double()
    weights = torch.where(draw.uniform_tensor(vocab_size) < 0.2, 0.0, weights)
    weights[draw.randrange(vocab_size)] += 1
    return NoiseLaw(weights / weights.sum())


def draw_logits(draw, batch, count, vocab_size):
    """Logits in a dtype that holds them exactly: rough ones, many of them equal, or fine ones; some infinite, NaN."""
    logits = draw.normal(batch, count, vocab_size) * draw.choice([0.5, 2.0, 8.0]) - draw.choice([0.0, 3.0])
    if draw.random() < 0.4:
        logits = (logits * 2).round() / 2
    if draw.random() < 0.3:
        logits = torch.where(draw.uniform_tensor(*logits.shape) < 0.4, -math.inf, logits)
    if draw.random() < 0.1:
        logits[draw.randrange(batch), draw.randrange(count), draw.randrange(vocab_size)] = math.nan
    if draw.random() < 0.1:
        logits[draw.randrange(batch), draw.randrange(count)] = -math.inf
    return logits.to(draw.choice(DTYPES))


def draw_factors(draw, batch, count, vocab_size):
    """Hidden states, weight, bias; in half precision whole numbers, whose products are exact however summed."""
    size, dtype = draw.randint(1, 9), draw.choice(DTYPES)
    hidden, weight = draw.normal(batch, count, size), draw.normal(vocab_size, size)
    bias = draw.maybe(0.5, lambda: draw.normal(vocab_size))
    exact = dtype != torch.float32 or draw.random() < 0.5
    if exact:
        hidden, weight = hidden.round().clamp(-2, 2), (weight * 2).round().clamp(-4, 4) / 4
        bias = None if bias is None else (bias * 2).round().clamp(-8, 8) / 2
    bias = None if bias is None else bias.to(dtype)
    return draw.layout(hidden.to(dtype)), draw.layout(weight.to(dtype)), bias, exact


def value_at(value, b, k):
    """An option of row (b, k): a number, or an entry of a tensor [B] or [B, K]."""
    if not isinstance(value, torch.Tensor):
        return value
    return (value[b] if value.dim() == 1 else value[b, min(k, value.shape[1] - 1)]).item()


def rows_of(arguments, logits, precision):
    """The truth's rows of a step, with where their tokens stand."""
    batch, count, vocab_size = logits.shape
    tokens, noise = arguments["tokens"], arguments.get("noise")
    for b in range(batch):
        for k in range(count):
            position = int(arguments["positions"].expand(batch, count)[b, k])
            present = int(tokens[b, position])
            ids, frozen = arguments["sample_ids"], arguments["frozen"]
            options = {name: value_at(arguments[name], b, k) for name in OPTIONS}
            rate = arguments.get("noise_rate")
            pi = 1 / vocab_size if noise is None else float(noise.probs[present])
            yield (
                (b, k, position),
                truth.Row(
                    g=logits[b, k],
                    present=present,
                    place=truth.Place(
                        arguments["seed"], int(arguments["step"]), b if ids is None else int(ids[b]), position
                    ),
                    frozen=frozen is not None and bool(frozen[b, position]),
                    noise_rate=None if rate is None else value_at(rate, b, k),
                    log_pi=math.log(pi) if pi > 0 else -math.inf,
                    precision=precision,
                    **options,
                ),
            )


def judge(row, token, by_products):
    """Hold a row's new token and by-products against the truth; return whether it could be judged."""
    if row.frozen or not truth.has_law(row):
        assert token == row.present
        # What else is said of a row without a law than that nothing was drawn is not settled.
        said = by_products if row.frozen else {"log_prob": by_products.get("log_prob", math.nan)}
        assert all(math.isnan(value) or (name == "argmax" and value == -1) for name, value in said.items()), (
            said
        )
        return True
    kept = truth.keeps(row)
    z = truth.law(row)
    drawn = None if kept else token
    if row.doubts:
        return False
    if kept:
        assert token == row.present
    elif row.temperature == 0:
        assert z[token] == 0
    else:
        assert z[token] > -math.inf, "a token that the filters left out"
        miss = truth.race(row, z, token)
        assert miss <= 20 * row.precision * (1 + 1 / row.temperature), f"misses the best score by {miss}"
    for name, value in by_products.items():
        expected = truth.BY_PRODUCTS[name](row, drawn)
        if name == "argmax":
            top = row.g.max()
            near = row.precision * (1 + abs(top)) if math.isfinite(top) else 0.0
            assert 0 <= value < len(row.g) and row.g[int(value)] >= top - near
            continue
        assert value == pytest.approx(expected, rel=tolerance(row), abs=tolerance(row), nan_ok=True), name
    return True


def tolerance(row):
    """Of by-products: they follow from logits of this size, at this temperature."""
    finite = row.g[np.isfinite(row.g)]
    largest = abs(finite).max() if finite.size else 0.0
    return row.precision * (2 + largest) * (1 + (1 / row.temperature if row.temperature > 1e-3 else 0.0))


def check_step(call, backend, number):
    """Run case `number`; return how many rows there were, and how many could be judged.

    Any call but `linear_glauber_step` gets logits.
    """
    draw = Draw(number)
    arguments, batch, count, vocab_size = draw_step(draw)
    before = arguments["tokens"].clone()
    if call is not linear_glauber_step:
        given = draw_logits(draw, batch, count, vocab_size)
        logits, precision = given.double().numpy(), 1e-6
        rows = list(rows_of(arguments, logits, precision))
        call(**arguments, logits=draw.layout(given), backend=backend)
    else:
        hidden, weight, bias, exact = draw_factors(draw, batch, count, vocab_size)
        logits = (hidden.double() @ weight.double().T + (0 if bias is None else bias.double())).numpy()
        rows = list(rows_of(arguments, logits, 1e-6 if exact else 4e-6))
        call(**arguments, hidden=hidden, weight=weight, bias=bias, backend=backend)
    judged, untouched = 0, torch.ones_like(before, dtype=torch.bool)
    for (b, k, position), row in rows:
        by_products = {name: float(arguments[name][b, k]) for name in BY_PRODUCTS if name in arguments}
        judged += judge(row, int(arguments["tokens"][b, position]), by_products)
        untouched[b, position] = False
    assert torch.equal(arguments["tokens"][untouched], before[untouched])
    return len(rows), judged


# Many of them


def check_many_steps(call, backend, count):
    rows, judged = map(sum, zip(*check_many(check_step, call, backend, count), strict=True))
    assert judged > 0.9 * rows - 3  # what float32 may decide either way is seldom


@pytest.mark.parametrize("call", STEPS)
def test_steps_agree_with_the_truth(backend, call):
    check_many_steps(call, backend, few(backend))


@pytest.mark.slow
@pytest.mark.parametrize("call", STEPS)
def test_many_steps_agree_with_the_truth(backend, call):
    check_many_steps(call, backend, many(backend))


def test_philox_of_the_truth_gives_known_answers():
    """Of Random123's kat_vectors: counter, key, words."""
    vectors = [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, words in vectors:
        assert truth.philox4x32(np.array(counter, dtype=np.uint64), key).tolist() == words


# Faults that the truth must see: what is done to the arguments of a step, or to what it gives.
FAULTS = {
    "another step": lambda given: {"step": (int(given["step"]) + 1) % 2**32},
    "warmer": lambda given: {"temperature": given["temperature"] * 1.05},
    "one token more": lambda given: {"top_k": given["top_k"] and given["top_k"] + 1},
    "a smaller nucleus": lambda given: {"top_p": given["top_p"] and given["top_p"] * 0.9},
    "min_p twice": lambda given: {"min_p": given["min_p"] and min(1.0, 2 * given["min_p"])},
    "normalize forgotten": lambda given: {"normalize": False},
    "no noise law": lambda given: {"noise": None},
    "rate for all": lambda given: {
        "noise_rate": rate if (rate := given.get("noise_rate")) is None else rate / 2
    },
    "nothing frozen": lambda given: {"frozen": None},
    "ids forgotten": lambda given: {"sample_ids": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_a_step_is_seen(fault):
    def wrong(**given):
        return glauber_step(**{**given, **FAULTS[fault](given)})

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_step, wrong, "reference", 100)


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_a_wrong_by_product_is_seen(name):
    def wrong(**given):
        glauber_step(**given)
        if name in given:
            given[name] += 1 if name == "argmax" else 1e-3

    with pytest.raises(AssertionError, match=r"case \d+ of wrong"):
        check_many(check_step, wrong, "reference", 100)
