"""`glauber_step` with options in random combinations, held against the float64 truth of truth.py: `check_step` runs one.

Those of ROW_OPTIONS are given as a number or row by row.
"""

import math

import numpy as np
import pytest
import torch
import truth
from random_cases import DTYPES, SIZES, SMALL, Draw

from ggm_kernels import NoiseLaw

# Options of a step: how each is drawn, for one row. None is "not given". A new option is one line here and a field of
# truth.Row. Those of ROW_OPTIONS are given as a number or row by row.

OPTIONS = {
    "temperature": lambda draw: draw.choice([1.0, 1.0, 0.0, draw.uniform(0.1, 3.0), 1e-30, 1e30]),
    "top_k": lambda draw: draw.choice([None, None, 1, draw.randint(1, 60), 2**40]),
    "top_p": lambda draw: draw.choice([None, None, 1.0, 1e-6, draw.uniform(0.05, 0.999)]),
    "min_p": lambda draw: draw.choice([None, None, 0.0, 1.0, draw.uniform(0.001, 0.5)]),
    "filter_order": lambda draw: draw.choice(["k_p_min", "p_k_min"]),
    "normalize": lambda draw: draw.random() < 0.5,
    "softcap": lambda draw: draw.choice([None, None, None, draw.uniform(0.5, 30.0)]),
}
ROW_OPTIONS = {
    "temperature": torch.float32,
    "top_k": torch.int64,
    "top_p": torch.float32,
    "min_p": torch.float32,
}
TENSORS = ("noise_rate", "logit_shift", "mixture")  # which are always tensors
BY_PRODUCTS = list(truth.BY_PRODUCTS)


def draw_step(draw):
    """Arguments that both calls share: those of logits [B, K, V] are drawn after them."""
    vocab_size = draw.choice(SIZES if draw.random() < 0.1 else SMALL)
    batch, length = draw.randint(1, 3), draw.randint(1, 6)
    positions, count = draw_positions(draw, batch, length)
    arguments = {
        "positions": positions,
        "seed": draw.getrandbits(64),
        "step": draw.choice([0, 2**32 - 1, draw.getrandbits(32)]),
        "sample_ids": draw.maybe(0.5, lambda: torch.tensor([draw.getrandbits(40) for _ in range(batch)])),
        "frozen": draw.maybe(0.4, lambda: draw.layout(draw.uniform_tensor(batch, length) < 0.3)),
        **{name: draw_option(draw, name, batch, count) for name in OPTIONS},
    }
    for name in ("seed", "step"):
        if draw.random() < 0.3:
            given = [draw.getrandbits(63 if name == "seed" else 32) for _ in range(batch)]
            arguments[name] = torch.tensor(draw.choice([given, given[0]]))
    arguments |= draw_tensors(draw, batch, count)
    if "noise_rate" in arguments or "mixture" in arguments:
        arguments["noise"] = draw.maybe(0.6, lambda: noise_law(draw, vocab_size))
    arguments["tokens"] = draw_tokens(draw, batch, length, vocab_size, arguments)
    for name in BY_PRODUCTS:
        if draw.random() < 0.6 and (name != "keep_prob" or "noise_rate" in arguments):
            arguments[name] = torch.full((batch, count), 77 if name == "argmax" else 77.0)
    return arguments, batch, count, vocab_size


def draw_positions(draw, batch, length):
    """Positions [B, K], with absent ones among them, [K] or None; and how many K there are."""
    count = draw.randint(1, length)
    positions = torch.stack([torch.randperm(length, generator=draw.generator)[:count] for _ in range(batch)])
    kind = draw.choice(["rows", "ragged", "shared", "all"])
    if kind == "all":
        return None, length
    if kind == "shared":
        positions = positions[0]
    if kind == "ragged":
        positions = torch.where(draw.uniform_tensor(batch, count) < 0.3, -1, positions)
    return draw.layout(positions.to(draw.choice([torch.int32, torch.int64]))), count


def draw_option(draw, name, batch, count):
    """An option for all rows, or one for each: [B] or [B, K]."""
    if name not in ROW_OPTIONS or draw.random() < 0.7:
        return OPTIONS[name](draw)
    shape = draw.choice([(batch,), (batch, count)])
    values = []
    while len(values) < math.prod(shape):
        value = OPTIONS[name](draw)
        values += [] if value is None else [value]
    return draw.layout(torch.tensor(values, dtype=ROW_OPTIONS[name]).view(shape))


def draw_tensors(draw, batch, count):
    """Options that are tensors of probabilities, 0 and 1 among them, and the shift of a logit."""
    given = {}
    for name, probability in (("noise_rate", 0.6), ("mixture", 0.3), ("logit_shift", 0.3)):
        if draw.random() < probability:
            shape = draw.choice([(batch,), (batch, count)])
            value = draw.uniform_tensor(*shape)
            value = torch.where(draw.uniform_tensor(*shape) < 0.15, value.round(), value)
            if name == "logit_shift":
                value = torch.where(value == 1, -math.inf, 8 * value - 6)
            given[name] = draw.layout(value.to(draw.choice(DTYPES)))
    return given


def draw_tokens(draw, batch, length, vocab_size, arguments):
    """Tokens: any numbers where nothing reads them, a mask beside the vocabulary where the noise has one."""
    ids = draw.choice([torch.int32, torch.int64])
    noise = arguments.get("noise")
    tokens = draw.integers(vocab_size if noise is None else noise.token_bound, batch, length)
    if not {"noise_rate", "logit_shift"} & set(arguments) and draw.random() < 0.3:
        tokens = tokens - 2**30
    return draw.layout(tokens.to(ids))


def noise_law(draw, vocab_size):
    if draw.random() < 0.3:
        return NoiseLaw.absorbing(vocab_size, draw.randint(0, vocab_size))
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
    """An option of row (b, k): a number, or an entry of a tensor, 0-d, [B] or [B, K]."""
    if not isinstance(value, torch.Tensor):
        return value
    return (value if value.dim() == 0 else value[b] if value.dim() == 1 else value[b, k]).item()


def noise_of(law, vocab_size):
    """A law of noise as the truth knows it."""
    if law is None:
        return truth.Noise(np.full(vocab_size, 1 / vocab_size))
    if law.mask_id is not None:
        return truth.Noise(law.probs.numpy(), mask=law.mask_id)
    return truth.Noise(
        law.probs.numpy(), law.table(torch.device("cpu")).numpy().astype(np.int64) & 0xFFFFFFFF
    )


def rows_of(arguments, logits, precision):
    """The truth's rows of a step, with where their tokens stand."""
    batch, count, vocab_size = logits.shape
    tokens, frozen, ids = (arguments[name] for name in ("tokens", "frozen", "sample_ids"))
    positions = torch.arange(count) if arguments["positions"] is None else arguments["positions"]
    noise = noise_of(arguments.get("noise"), vocab_size)
    for b in range(batch):
        for k in range(count):
            position = int(positions.expand(batch, count)[b, k])
            place = truth.Place(
                seed=value_at(arguments["seed"], b, k),
                step=value_at(arguments["step"], b, k),
                sample_id=b if ids is None else int(ids[b]),
                position=position,
            )
            yield (
                (b, k, position),
                truth.Row(
                    g=logits[b, k],
                    present=int(tokens[b, position]) if position >= 0 else 0,
                    place=place,
                    noise=noise,
                    idle=position < 0 or (frozen is not None and bool(frozen[b, position])),
                    precision=precision,
                    **{name: value_at(arguments.get(name), b, k) for name in (*OPTIONS, *TENSORS)},
                ),
            )


def judge(row, token, by_products):
    """Hold a row's new token and by-products against the truth; return whether it could be judged."""
    if row.idle or not truth.has_law(row):
        assert token == row.present
        for name, value in by_products.items():
            assert math.isnan(value) or (name == "argmax" and value == -1), (name, value)
        return True
    kept = truth.keeps(row)
    z = truth.law(row)
    noise_token = truth.noise_token(row)
    drawn = None if kept else token
    if row.doubts:
        return False
    if kept:
        assert token == row.present
    elif noise_token is not None:
        assert token == noise_token
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
    if call.__name__ != "linear_glauber_step":
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
        token = row.present if position < 0 else int(arguments["tokens"][b, position])
        judged += judge(row, token, by_products)
        if position >= 0:
            untouched[b, position] = False
    assert torch.equal(arguments["tokens"][untouched], before[untouched])
    return len(rows), judged
