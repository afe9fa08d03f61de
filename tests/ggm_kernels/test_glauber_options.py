"""Options of `glauber_step`, alone and in pairs: every backend agrees with the reference, mixed batches with rows."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import linear

from ggm_kernels import NoiseLaw, backends, glauber_step, linear_glauber_step

OP = "glauber_step"
FLOATS = ("log_sum_exp", "log_prob", "keep_prob", "raw_log_prob", "entropy", "margin")
VOCAB_SIZES = [1, 7, 1023, 1025, 2049, 5000]
ROWS, LENGTH = 6, 8


def interprets_triton():
    return bool(backends()["triton"]) and not torch.cuda.is_available()


def options_of(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    law = rand(vocab_size) + 0.01
    return {
        "seed": {"seed": torch.tensor([5, -6])},
        "step": {"step": torch.tensor([2**32 - 1, 0])},
        "temperature": {"temperature": torch.tensor([0.0, 1.0, 0.7, 3.0, 1e-3, 1.0]).expand(2, -1)},
        "top_k": {"top_k": torch.tensor([3, 10**6])},
        "top_p": {"top_p": rand(2, ROWS).clamp_min(0.1)},
        "min_p": {"min_p": torch.tensor([0.0, 0.02])},
        "p_k_min": {"filter_order": "p_k_min", "top_k": 4, "top_p": 0.8},
        "noise_rate": {"noise_rate": 0.9},
        "normalize": {"noise_rate": rand(2, 1).double(), "normalize": True},
        "noise": {"noise": NoiseLaw(law / law.sum()), "noise_rate": torch.tensor(0.95)},
        "frozen": {"frozen": rand(2, LENGTH) < 0.3},
        "absent": {"positions": torch.tensor([[3, -1, 0, 7, -1, 2], [-1, 5, 4, -1, 1, 0]])},
        "softcap": {"softcap": 2.5},
        "logit_shift": {"logit_shift": rand(2) * 8 - 4},
        "mixture": {"mixture": rand(2, ROWS)},
    }


def problem(vocab_size, *names, dtype=torch.float32):
    generator = torch.Generator().manual_seed(vocab_size + 1)
    arguments = {
        "tokens": torch.randint(vocab_size, (2, LENGTH), generator=generator),
        "logits": (torch.randn(2, ROWS, vocab_size, generator=generator) * 2).to(dtype),
        "positions": torch.stack([torch.randperm(LENGTH, generator=generator)[:ROWS] for _ in range(2)]),
        "seed": 11,
        "step": 3,
    }
    for name in names:
        arguments |= options_of(vocab_size)[name]
    return arguments


def run(arguments, backend, op=glauber_step):
    """Tokens and every by-product."""
    arguments = dict(arguments)
    rows = arguments["positions"].shape
    filled = {
        name: torch.full(rows, 77.0) for name in FLOATS if name != "keep_prob" or "noise_rate" in arguments
    }
    filled["argmax"] = torch.full(rows, 77)
    tokens = op(arguments.pop("tokens").clone(), **arguments, **filled, backend=backend)
    return {"tokens": tokens, **filled}


def from_hidden(arguments):
    arguments = dict(arguments)
    rows = arguments.pop("logits").flatten(0, 1)
    hidden = torch.eye(len(rows), dtype=rows.dtype).view(2, -1, len(rows))
    return {**arguments, "hidden": hidden, "weight": rows.T.contiguous()}


def assert_same(ours, theirs, said, tolerance=2e-5):
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name],
            value,
            equal_nan=True,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}, {said}: {m}",
        )


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_options_agree_with_the_reference(vocab_size):
    check_options(vocab_size, [(), *((name,) for name in options_of(vocab_size))])


@pytest.mark.skipif(not interprets_triton(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_interpreted_options_agree_with_the_reference(vocab_size):
    """Every option at one of the sizes; at all of them in the slow tests."""
    alone = [(), *((name,) for name in options_of(vocab_size))]
    index = VOCAB_SIZES.index(vocab_size)
    check_options(vocab_size, alone[index :: len(VOCAB_SIZES)], "triton")


@pytest.mark.slow
@pytest.mark.skipif(not interprets_triton(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_interpreted_options_in_pairs_agree_with_the_reference(vocab_size):
    names = options_of(vocab_size)
    index = VOCAB_SIZES.index(vocab_size)
    check_options(vocab_size, [(name,) for name in names], "triton")
    check_options(vocab_size, list(itertools.combinations(names, 2))[index :: len(VOCAB_SIZES)], "triton")


@pytest.mark.parametrize(
    "vocab_size", [pytest.param(v, marks=[] if v == 1025 else pytest.mark.slow) for v in VOCAB_SIZES]
)
def test_options_in_pairs_agree_with_the_reference(vocab_size):
    check_options(vocab_size, itertools.combinations(options_of(vocab_size), 2))


def check_options(vocab_size, choices, backend="cpu"):
    for pair in choices:
        arguments = problem(vocab_size, *pair)
        expected = run(arguments, "reference")
        assert_same(run(arguments, backend), expected, f"{pair} from logits")
        assert_same(
            run(from_hidden(arguments), backend, linear_glauber_step), expected, f"{pair} from hidden"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [7, 1025])
def test_options_in_half_precision(vocab_size, dtype):
    for name in options_of(vocab_size):
        arguments = problem(vocab_size, name, "mixture", "noise_rate", dtype=dtype)
        assert_same(run(arguments, "cpu"), run(arguments, "reference"), name)


def one_row(arguments, sequence, k):
    """The step of one row of a batch alone, its numbers given as numbers."""

    def part(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        if name in ("seed", "step"):
            value = int(value[sequence])
            return value % 2**64 if name == "seed" else value
        if name in ("tokens", "frozen"):
            return value[sequence : sequence + 1]
        if name in ("logits", "positions"):
            return value[sequence : sequence + 1, k : k + 1]
        value = value.expand(2) if value.dim() == 0 else value
        value = value[sequence] if value.dim() == 1 else value[sequence].expand(ROWS)[k]
        if name in ("logit_shift", "mixture"):
            return value.view(1)
        return value.item()

    return {
        **{name: part(name, value) for name, value in arguments.items()},
        "sample_ids": torch.tensor([sequence]),
    }


@pytest.mark.parametrize("vocab_size", [7, 1025, 2049])
def test_a_mixed_batch_equals_its_rows_alone_to_the_bit(backend, vocab_size):
    names = ["seed", "step", "temperature", "top_k", "top_p", "min_p", "noise", "logit_shift", "mixture"]
    for left_out in ({"noise", "mixture"}, {"top_k", "top_p", "min_p"}, set()):
        arguments = problem(vocab_size, *(name for name in names if name not in left_out))
        whole = run(arguments, backend)
        some = 7 if backend == "triton" else 1  # interpreted
        for sequence, k in list(itertools.product(range(2), range(ROWS)))[::some]:
            alone = run(one_row(arguments, sequence, k), backend)
            at = sequence, arguments["positions"][sequence, k]
            assert alone["tokens"][0, at[1]] == whole["tokens"][at]
            for name in set(whole) - {"tokens"}:
                assert torch.equal(
                    alone[name].nan_to_num(-9.0)[0, 0], whole[name].nan_to_num(-9.0)[sequence, k]
                ), name


def test_all_positions(backend):
    arguments = problem(9)
    arguments["logits"] = torch.randn(2, LENGTH, 9)
    every = glauber_step(
        arguments.pop("tokens"), **{**arguments, "positions": torch.arange(LENGTH)}, backend=backend
    )
    start = problem(9)["tokens"]
    assert torch.equal(glauber_step(start, **{**arguments, "positions": None}, backend=backend), every)


def test_absent_rows_are_passed_over(backend):
    arguments = problem(1025, "absent", "normalize", "mixture")
    arguments["logits"][arguments["positions"] < 0] = math.nan
    result = run(arguments, backend)
    absent = arguments["positions"] < 0
    for name in FLOATS:
        assert result[name][absent].isnan().all()
    assert result["argmax"][absent].eq(-1).all() and result["log_sum_exp"][~absent].isfinite().all()


@pytest.mark.parametrize("option", ["noise_rate", "logit_shift", None])
def test_present_tokens_are_checked_where_they_are_read(backend, option):
    arguments = problem(5, *([option] if option else []))
    arguments["frozen"] = torch.zeros(2, LENGTH, dtype=torch.bool)
    arguments["positions"] = torch.tensor([[3, -1, 0, 7, -1, 2], [-1, 5, 4, -1, 1, 0]])
    tokens = arguments.pop("tokens")
    arguments["frozen"][0, 0] = True
    tokens[0, 1] = tokens[0, 0] = 5  # not asked for; frozen
    glauber_step(tokens.clone(), **arguments, backend=backend)
    tokens[1, 4] = -1
    before = tokens.clone()
    if option is None:
        assert glauber_step(tokens, **arguments, backend=backend)[1, 4] >= 0
        return
    with pytest.raises(IndexError, match=r"tokens\[1, 4\]: got -1; allowed: \[0, 5\)"):
        glauber_step(tokens, **arguments, backend=backend)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.tensor([1.0, -1.0])}, r"temperature\[1\]: got -1.0"),
        ({"temperature": torch.tensor([math.nan, 1.0])}, r"temperature\[0\]: got nan"),
        ({"top_k": torch.tensor([1, 0])}, r"top_k\[1\]: got 0; allowed: 1 <= top_k "),
        ({"top_p": torch.full((2, ROWS), 0.0)}, r"top_p\[0, 0\]: got 0.0"),
        ({"min_p": torch.tensor([0.0, 1.5])}, r"min_p\[1\]: got 1.5; allowed: \[0.0, 1.0\]"),
        ({"mixture": torch.tensor([0.5, -0.5])}, r"mixture\[1\]: got -0.5"),
        ({"step": torch.tensor([0, 2**32])}, r"step\[1\]: got 4294967296"),
        ({"noise_rate": torch.tensor([[0.5], [2.0]])}, r"noise_rate\[1\]: got 2.0"),
    ],
)
def test_values_of_rows_are_checked(backend, change, message):
    arguments = {**problem(5), **change}
    tokens = arguments.pop("tokens")
    before = tokens.clone()
    with pytest.raises(ValueError, match=message):
        glauber_step(tokens, **arguments, backend=backend)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("vocab_size", [5, 1025])
def test_empty_batches_with_every_option(backend, vocab_size):
    for batch, count in [(0, 3), (2, 0), (0, 0)]:
        rows = batch, count
        tokens = torch.ones(batch, 4, dtype=torch.int64)
        by_products = {name: torch.zeros(rows) for name in FLOATS} | {
            "argmax": torch.zeros(rows, dtype=torch.int64)
        }
        arguments = {
            "seed": torch.zeros(batch, dtype=torch.int64), "step": torch.zeros(batch, dtype=torch.int64),
            "temperature": torch.ones(rows), "top_k": torch.ones(rows, dtype=torch.int64), "top_p": torch.ones(batch),
            "min_p": torch.zeros(batch), "noise_rate": torch.ones(rows), "mixture": torch.ones(rows), "softcap": 1.0,
            "logit_shift": torch.ones(batch), "positions": torch.zeros(rows, dtype=torch.int64), **by_products,
        }  # fmt: skip
        glauber_step(tokens, torch.zeros(*rows, vocab_size), **arguments, backend=backend)
        linear_glauber_step(
            tokens, torch.zeros(*rows, 3), torch.zeros(vocab_size, 3), **arguments, backend=backend
        )
        assert tokens.eq(1).all()


def test_compiles_with_every_option(backend):
    torch._dynamo.reset()
    arguments = problem(
        9, "seed", "step", "temperature", "top_k", "top_p", "min_p", "noise", "mixture", "logit_shift"
    )
    tokens = arguments.pop("tokens")

    def step(tokens, temperature, entropy):
        return glauber_step(
            tokens, **{**arguments, "temperature": temperature}, entropy=entropy, softcap=3.0, backend=backend
        ) + 0  # fmt: skip

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    temperature, ours, theirs = torch.rand(2, ROWS), torch.zeros(2, ROWS), torch.zeros(2, ROWS)
    expected = step(tokens.clone(), temperature, theirs)
    assert torch.equal(compiled(tokens.clone(), temperature, ours), expected)
    assert torch.equal(ours, theirs) and ours.gt(0).any()


def test_compiled_for_any_batch_with_seeds_and_steps_by_sequence():
    @torch.compile(dynamic=True, fullgraph=True)
    def step(tokens, logits, seed, step):
        return glauber_step(tokens, logits, None, seed=seed, step=step, temperature=torch.ones(len(tokens)))

    for batch in (2, 3, 5):
        tokens, logits, seed = torch.zeros(batch, 4).long(), torch.randn(batch, 4, 9), torch.arange(batch)
        expected = glauber_step(tokens.clone(), logits, None, seed=seed, step=seed + 1)
        assert torch.equal(step(tokens.clone(), logits, seed, seed + 1), expected)


def test_a_row_without_a_law_is_said_once_a_process(backend, monkeypatch):
    if backend == "triton":
        pytest.skip("a kernel of GPUs counts no rows: that would synchronise")
    import sys

    if backend == "emulated":
        pytest.skip("device code tells nobody: that would take a look at its memory")
    ops = sys.modules["ggm_kernels.ops.glauber_step"]
    monkeypatch.setattr(ops, "_has_warned", False)
    arguments = problem(1025)
    arguments["logits"][0, 0, 1024] = math.nan
    tokens = arguments.pop("tokens")
    with pytest.warns(RuntimeWarning, match="a NaN or nothing but -inf") as caught:
        for _ in range(3):
            glauber_step(tokens, **arguments, backend=backend)
    assert sum("but -inf" in str(warning.message) for warning in caught) == 1


def test_log_sum_exp_of_a_heavy_token_among_four_million_light_ones():
    logits = torch.full((1, 1, 2**22), -20.0)
    logits[0, 0, 12345] = 0.0
    by_product = torch.zeros(1, 1)
    glauber_step(
        torch.zeros(1, 1, dtype=torch.int64), logits, torch.zeros(1, dtype=torch.int64), seed=1, step=0,
        log_sum_exp=by_product, backend="cpu",
    )  # fmt: skip
    assert abs(float(by_product) - float(logits.double().logsumexp(2))) < 1e-6


def test_softcap_and_shift_are_those_of_their_formulas(backend):
    arguments = problem(50, "softcap", "logit_shift")
    result = run(arguments, backend)
    logits = 2.5 * torch.tanh(arguments["logits"] / 2.5)
    present = arguments["tokens"].gather(1, arguments["positions"])
    shift = arguments["logit_shift"][:, None, None].expand(2, ROWS, 1)
    logits = logits.scatter_add(2, present[:, :, None], shift)
    torch.testing.assert_close(result["log_sum_exp"], logits.logsumexp(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result["argmax"], logits.argmax(2))
    first, second = logits.topk(2, 2).values.unbind(2)
    torch.testing.assert_close(result["margin"], first - second, rtol=1e-4, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(result["entropy"], entropy, rtol=1e-5, atol=1e-5)


def test_hidden_states_with_options_are_the_product():
    arguments = problem(40)
    factors = from_hidden(arguments)
    assert torch.equal(linear(factors["hidden"], factors["weight"]), arguments["logits"])
