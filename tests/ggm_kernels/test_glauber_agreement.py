"""`glauber_step` and `linear_glauber_step`: every backend draws what the reference draws, however it is launched."""

import math
import sys

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import NoiseLaw, backends, glauber_step, linear_glauber_step
from ggm_kernels.randomness import RACE_GROUP

OP = "glauber_step"
WITHOUT_REFERENCE = True
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FILTERS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.8},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.9},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 9, "top_p": 0.97, "min_p": 0.01, "temperature": 0.6},
]
TEMPERATURES = [0.0, 1e-30, 0.3, 30.0, 1e30]
BY_PRODUCTS = ("log_sum_exp", "log_prob", "keep_prob")


def problem(rows, vocab_size, dtype=torch.float32, batch=2, scale=2.0):
    """Arguments of a step on batch * rows rows, positions out of order, a third of the tokens not asked for."""
    generator = torch.Generator().manual_seed(rows + vocab_size)
    length = rows + rows // 2 + 1
    return {
        "tokens": torch.randint(vocab_size, (batch, length), generator=generator),
        "logits": (torch.randn(batch, rows, vocab_size, generator=generator) * scale - 3).to(dtype),
        "positions": torch.stack([torch.randperm(length, generator=generator)[:rows] for _ in range(batch)]),
        "seed": 2**63 + 12345,
        "step": 2**32 - 2,
    }


def with_keeping(arguments):
    """Keep-or-replace with everything that goes with it."""
    generator = torch.Generator().manual_seed(5)
    batch, rows, vocab_size = arguments["logits"].shape
    return {
        **arguments,
        "noise_rate": torch.rand(batch, rows, generator=generator),
        "noise": NoiseLaw(torch.rand(vocab_size, generator=generator).softmax(0)),
        "normalize": True,
        "frozen": torch.rand(arguments["tokens"].shape, generator=generator) < 0.1,
        "sample_ids": torch.tensor([2**40 - 1, 3])[:batch],
    }


def run(arguments, backend, op=glauber_step, **changes):
    arguments = {**arguments, **changes}
    return op(arguments.pop("tokens").clone(), **arguments, backend=backend)


def assert_agree(ours, theirs, of=100000, may_differ=1):
    """At most `may_differ` of `of` tokens differ, rounded down."""
    assert ours.dtype == theirs.dtype
    assert int((ours != theirs).sum()) <= ours.numel() * may_differ // of


def assert_agrees_with_reference(backend, arguments):
    expected = run(arguments, "reference")
    assert not torch.equal(expected, arguments["tokens"])
    assert_agree(run(arguments, backend), expected)


# Draws


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_of_many_rows(backend, dtype):
    assert_agrees_with_reference(backend, problem(50000 if backend == "cpu" else 2000, 33, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 4, 5, 16, 17, 257, 1023, 1024, 1025, 2048, 50257])
def test_draws_of_any_vocabulary(backend, vocab_size, dtype):
    arguments = problem(300 if vocab_size < 1000 else 9, vocab_size, dtype)
    if vocab_size == 1:
        assert torch.equal(run(arguments, backend), arguments["tokens"])
    else:
        assert_agrees_with_reference(backend, arguments)


def test_draws_of_the_largest_vocabulary(backend):
    # One flat row: the winner is anywhere, and its words come from the last of the counter's 2**20 blocks.
    size = 2**17 if backend == "triton" else 2**22  # interpreted, groups take their time
    arguments = problem(3, size, torch.bfloat16, batch=1, scale=0.1)
    assert_agrees_with_reference(backend, arguments)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_at_any_temperature(backend, temperature):
    assert_agrees_with_reference(backend, {**problem(2000, 33), "temperature": temperature})


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_with_filters(backend, filters, dtype):
    rows = 300 if backend == "triton" else 1000  # interpreted: of a few programs, the last in part
    assert_agrees_with_reference(backend, {**problem(rows, 33, dtype), **filters})


@pytest.mark.parametrize("filters", [{"top_k": 50}, {"top_k": 1000, "top_p": 0.9}, {"min_p": 0.01}], ids=str)
def test_draws_with_filters_of_a_large_vocabulary(backend, filters):
    batch = 1 if backend == "triton" else 2
    assert_agrees_with_reference(backend, {**problem(3, 50257, batch=batch), **filters})


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}], ids=str)
def test_keep_or_replace(backend, filters):
    arguments = with_keeping(problem(2000, 17))
    assert_agrees_with_reference(backend, {**arguments, **filters})
    plain = {name: value for name, value in arguments.items() if name not in ("normalize", "noise")}
    plain["noise_rate"] = torch.tensor([0.999, 0.9], dtype=torch.bfloat16)
    assert_agrees_with_reference(backend, {**plain, **filters})


@pytest.mark.parametrize("filters", [{}, {"top_k": 9, "top_p": 0.9, "temperature": 0.7}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_and_lawless_rows(backend, dtype, filters):
    inf, nan = math.inf, math.nan
    arguments = with_keeping(problem(400, 13, dtype))
    logits = arguments["logits"]
    logits[:, ::7, 3:9] = -inf
    logits[:, 1::7] = -inf
    logits[:, 2::7, 5] = inf
    logits[:, 3::7, 4:6] = inf
    logits[:, 4::7, 12] = nan
    ours, theirs = ({name: torch.zeros(2, 400) for name in BY_PRODUCTS} for _ in range(2))
    assert_agree(run(arguments, backend, **filters, **ours), run(arguments, "reference", **filters, **theirs))
    for name in BY_PRODUCTS:
        torch.testing.assert_close(ours[name], theirs[name], equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "asked", [(), ("entropy",), ("log_sum_exp", "log_prob"), ("entropy", "log_sum_exp", "log_prob")], ids=str
)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"softcap": 50.0}], ids=str)
def test_groups_whose_first_tokens_tell_nothing_of_the_others(backend, options, asked):
    """Backends may sum a group relative to what they see first of it."""
    inf, nan = math.inf, math.nan
    kinds = [60.0, 300.0, 1e30, inf, -inf, nan, "light", "light and infinite", "heavy", "dead", "apart"]
    arguments = problem(5 * len(kinds), 2 * RACE_GROUP + 77)
    logits = arguments["logits"]
    for i, kind in enumerate(kinds):
        rows = logits[:, i :: len(kinds)]
        if kind == "heavy":
            rows[..., RACE_GROUP : RACE_GROUP + 128] += 80.0
        elif kind == "dead":
            rows[..., RACE_GROUP:] = -inf
        elif kind == "apart":
            rows *= 30.0
        elif isinstance(kind, str):
            # All groups alike: a race in which each has its part.
            for begin in range(0, logits.shape[2], RACE_GROUP):
                rows[..., begin : begin + 70] = -inf if "infinite" in kind else -40.0
                rows[..., begin + 70 : begin + 128] -= 30.0
        else:
            rows[..., 700] = kind
            rows[..., RACE_GROUP + 5] = kind
    ours, theirs = ({name: torch.zeros(2, logits.shape[1]) for name in asked} for _ in "ab")
    assert_agree(run(arguments, backend, **options, **ours), run(arguments, "reference", **options, **theirs))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], equal_nan=True, rtol=1e-5, atol=1e-5)


# Layouts


def test_layouts_of_tokens_logits_positions_and_rates(backend):
    arguments = with_keeping(problem(40, 29))
    expected = run(arguments, "reference")
    tokens, logits, positions = (arguments[name] for name in ("tokens", "logits", "positions"))
    columns = torch.zeros(*tokens.shape[::-1], 2, dtype=torch.int32)
    columns[..., 1].T.copy_(tokens)
    strided = columns[..., 1].T
    out = glauber_step(
        strided,
        **{name: value for name, value in arguments.items() if name not in ("tokens", "logits", "positions")},
        logits=logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        positions=positions.T.contiguous().T.int(),
        backend=backend,
    )
    assert out is strided and torch.equal(out.long(), expected) and not columns[..., 0].any()
    arguments |= {"positions": positions[0], "noise_rate": torch.tensor(0.7).expand(2)}
    arguments["logits"] = logits[:1, :1].expand(2, 40, -1)
    assert_agrees_with_reference(backend, arguments)


def test_empty_steps(backend):
    for batch, count in [(0, 3), (2, 0), (0, 0)]:
        tokens = torch.ones(batch, 4, dtype=torch.int64)
        logits, positions = torch.zeros(batch, count, 5), torch.arange(count)
        assert glauber_step(tokens, logits, positions, seed=1, step=0, top_p=0.5, backend=backend).eq(1).all()
        hidden, weight = torch.zeros(batch, count, 3), torch.zeros(5, 3)
        linear_glauber_step(tokens, hidden, weight, positions, seed=1, step=0, backend=backend)
        assert tokens.eq(1).all()


def test_rows_do_not_depend_on_their_batch(backend):
    arguments = with_keeping(problem(30, 200))
    whole = run(arguments, backend, top_p=0.9)
    for row in range(2):
        part = {
            name: value[row : row + 1] if torch.is_tensor(value) and value.shape[:1] == (2,) else value
            for name, value in arguments.items()
        }
        assert torch.equal(run(part, backend, top_p=0.9), whole[row : row + 1])


# From hidden states


def linear_problem(rows, vocab_size, hidden_size, dtype):
    arguments = with_keeping(problem(rows, vocab_size, dtype))
    generator = torch.Generator().manual_seed(9)
    logits = arguments.pop("logits")
    hidden = torch.randn(2, rows, hidden_size, generator=generator).to(dtype)
    weight = (torch.randn(vocab_size, hidden_size, generator=generator) / hidden_size**0.5).to(dtype)
    return {**arguments, "hidden": hidden, "weight": weight, "bias": logits[0, 0] / 2}


def expected_of(arguments, backend="reference", **changes):
    """`glauber_step` on the logits that `linear` gives."""
    arguments = dict(arguments)
    hidden, weight, bias = arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("bias")
    return run({**arguments, "logits": linear(hidden, weight, bias)}, backend, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab_size", "hidden_size"),
    [(300, 40), (65, 3), (7, 0), (2055, 5), (50257, 64), (300, 130), (2055, 130)],
)
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5, "top_p": 0.9}], ids=str)
def test_linear_agrees_with_the_step_on_the_product(backend, dtype, vocab_size, hidden_size, filters):
    arguments = linear_problem(25 if vocab_size < 1000 else 2, vocab_size, hidden_size, dtype)
    arguments |= filters
    interpreted = backend == "triton" and vocab_size > 50000  # half a minute each
    for bias in (arguments["bias"], *([] if interpreted else [None])):
        given, expected = ({**arguments, "bias": bias} for _ in range(2))
        ours = run(given, backend, linear_glauber_step)
        assert_agree(ours, expected_of(expected), of=1000)


def test_linear_takes_any_layout(backend):
    arguments = linear_problem(10, 50, 24, torch.float32)
    expected = expected_of(arguments)
    arguments["hidden"] = arguments["hidden"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    arguments["weight"] = arguments["weight"].T.contiguous().T
    arguments["bias"] = torch.stack([arguments["bias"]] * 2, 1)[:, 1]
    assert_agree(run(arguments, backend, linear_glauber_step), expected)


def test_linear_takes_hidden_of_another_precision_under_autocast(backend):
    arguments = linear_problem(10, 50, 24, torch.float32)
    expected = run(arguments, backend, linear_glauber_step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(arguments, backend, linear_glauber_step), expected)
        half = run({**arguments, "hidden": arguments["hidden"].bfloat16()}, backend, linear_glauber_step)
    arguments["hidden"] = arguments["hidden"].bfloat16().float()
    assert torch.equal(half, run(arguments, backend, linear_glauber_step))


# Launches of Triton

interprets_triton = pytest.mark.skipif(
    torch.cuda.is_available() or not backends()["triton"], reason="needs Triton's interpreter"
)


def triton_module(name):
    import ggm_kernels.triton  # noqa: F401

    return sys.modules[f"ggm_kernels.triton.{name}"]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"top_k": 300, "min_p": 0.001}], ids=str)
@interprets_triton
def test_triton_draws_the_same_in_tiles_of_any_shape(changes, monkeypatch):
    """Five groups: one after the other of few rows, or all at once of all rows."""
    module = triton_module("glauber_step")
    arguments = {**with_keeping(problem(4, 4 * RACE_GROUP + 100)), **changes}
    logits = arguments["logits"].round_().clamp_(max=0)  # temperature 0 takes the first of many
    logits[0, 3, 600], logits[1, 2], logits[0, 1, :2600] = math.nan, -math.inf, -math.inf
    whole, parts = ({name: torch.zeros(2, 4) for name in BY_PRODUCTS} for _ in range(2))
    expected = run(arguments, "triton", **whole)
    assert_agree(expected, run(arguments, "reference"))
    monkeypatch.setattr(module, "_INTERPRETED_TILE", 2048)
    monkeypatch.setattr(module, "_SETTLE_TILE", 16)
    assert torch.equal(run(arguments, "triton", **parts), expected)
    torch.testing.assert_close(parts, whole, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filters", [{}, {"top_k": 20}, {"temperature": 0.0}], ids=str)
@interprets_triton
def test_triton_paths_of_linear_agree(dtype, filters, monkeypatch):
    module = triton_module("linear_glauber_step")
    arguments = {**linear_problem(80, 150, 24, dtype), **filters}
    by_products = [{name: torch.zeros(2, 80) for name in BY_PRODUCTS} for _ in range(4)]
    expected = expected_of(arguments, **by_products[0])
    # Fused, in slots of 64 tokens; the library's product of all rows; of 50 at a time.
    monkeypatch.setattr(module, "_INTERPRETED_TOKENS", 64)
    launches = [(10**6, 2**26, 1), (0, 2**26, 1), (0, 1, 50)]
    for (fused_rows, buffer_bytes, least_rows), given in zip(launches, by_products[1:], strict=True):
        monkeypatch.setattr(module, "_FUSED_ROWS", fused_rows)
        monkeypatch.setattr(module, "_BUFFER_BYTES", buffer_bytes)
        monkeypatch.setattr(module, "_LEAST_ROWS", least_rows)
        ours = run(arguments, "triton", linear_glauber_step, **given)
        assert_agree(ours, expected, of=1000)
        same = ours.gather(1, arguments["positions"]) == expected.gather(1, arguments["positions"])
        # A product rounded otherwise moves a logit by an ulp of its dtype.
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        for name in BY_PRODUCTS:
            torch.testing.assert_close(
                given[name][same], by_products[0][name][same], equal_nan=True, rtol=tolerance, atol=tolerance
            )


@interprets_triton
def test_groups_of_a_fused_product_are_those_of_its_logits():
    """Slots of 256 tokens make up groups of four: groups race by the words of their number, whole or in slots."""
    arguments = linear_problem(10, 2 * RACE_GROUP + 300, 24, torch.float32)
    assert_agree(run(arguments, "triton", linear_glauber_step), expected_of(arguments), of=1000)
