"""Calls that look like an earlier one take a short way, which may change nothing but the time."""

import sys
from contextlib import nullcontext
from itertools import combinations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import ggm_kernels
from ggm_kernels import NoiseLaw, glauber_step
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS
from ggm_kernels.native import plans
from ggm_kernels.ops.plans import Plans

pytestmark = [
    pytest.mark.skipif(not ggm_kernels.backends()["cpu"], reason="plans are of the compiled core"),
    pytest.mark.usefixtures("planned"),
]

B, L, K, V = 3, 5, 2, 7
LAW = NoiseLaw(torch.full((V,), 1 / V))


def arguments(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, V, generator=generator)
    positions = torch.rand(B, L, generator=generator).argsort(1)[:, :K].contiguous()
    return torch.zeros(B, L, dtype=torch.int64), logits, positions, options


def by_products(names):
    return {
        name: torch.zeros(B, K, dtype=torch.int64 if name == "argmax" else torch.float32) for name in names
    }


def step(tokens, logits, positions, options, seed=1, step=0):
    return glauber_step(tokens, logits, positions, seed=seed, step=step, **options)


def make_plan(**options):
    """Two calls that look alike, so that the next one is planned."""
    for seed in range(2):
        step(*arguments(seed, **options))


OPTIONS = {
    "nothing": {},
    "all positions": {"positions": None},
    "numbers": {
        "temperature": 0.7,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.01,
        "filter_order": "p_k_min",
        "softcap": 5.0,
    },
    "rate": {"noise_rate": 0.3, "normalize": True},
    "rates": {"noise_rate": torch.tensor([0.1, 0.5, 0.9]), "noise": LAW},
    "rates in a column": {"noise_rate": torch.tensor([[0.1], [0.5], [0.9]])},
    "ids": {"sample_ids": torch.tensor([5, 7, 9]), "frozen": torch.eye(B, L).bool()},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_planned_step_is_the_step(name, planned):
    options = dict(OPTIONS[name])
    rows = L if "positions" in options else K
    names = BY_PRODUCTS if "noise_rate" in options else tuple(set(BY_PRODUCTS) - {"keep_prob"})

    def case(seed):
        tokens, logits, positions, _ = arguments(seed)
        if "positions" in options:
            logits, positions = torch.randn(B, L, V, generator=torch.Generator().manual_seed(seed)), None
        asked = {key: value.new_zeros(B, rows) for key, value in by_products(names).items()}
        rest = {key: value for key, value in options.items() if key != "positions"}
        return tokens, logits, positions, rest | asked

    expected = []
    for seed in range(2):
        expected.append(case(seed))
        step(*expected[-1], seed=seed, step=2**32 - 1)
    assert not planned
    for seed in range(2):
        again = case(seed)
        step(*again, seed=seed, step=2**32 - 1)
        assert torch.equal(again[0], expected[seed][0])
        for key in names:
            torch.testing.assert_close(again[3][key], expected[seed][3][key], rtol=0, atol=0, equal_nan=True)
    assert planned == [0, 0]


def _row_values(low, high, *shape):
    return lambda g: low + (high - low) * torch.rand(*shape, generator=g)


# What may be given beside each other, with values that every call draws anew.
PAIRED = {
    "all positions": {"positions": lambda g: None},
    "shared positions": {"positions": lambda g: torch.randperm(L, generator=g)[:K]},
    "absent rows": {"positions": lambda g: torch.tensor([[0, -1], [-1, -1], [3, 1]])},
    "temperature": {"temperature": lambda g: 0.7},
    "temperatures": {"temperature": _row_values(0.0, 2.0, B)},
    "greedy": {"temperature": lambda g: torch.tensor([0.0, 1.0, 0.0])},
    "top-k": {"top_k": lambda g: 3},
    "top-ks": {"top_k": lambda g: torch.randint(1, V + 1, (B, K), generator=g)},
    "top-p": {"top_p": lambda g: 0.8},
    "top-ps": {"top_p": _row_values(0.2, 1.0, B)},
    "min-p": {"min_p": lambda g: 0.1},
    "min-ps": {"min_p": _row_values(0.0, 0.4, B, K)},
    "order": {"filter_order": lambda g: "p_k_min"},
    "softcap": {"softcap": lambda g: 2.0},
    "shifts": {"logit_shift": _row_values(-2.0, 2.0, B, K)},
    "shift of a sequence": {"logit_shift": _row_values(-2.0, 2.0, B)},
    "mixture": {"mixture": _row_values(0.0, 1.0, B)},
    "mixtures": {"mixture": _row_values(0.0, 1.0, B, K)},
    "rate": {"noise_rate": lambda g: 0.3},
    "rates": {"noise_rate": _row_values(0.0, 1.0, B)},
    "rates by row": {"noise_rate": _row_values(0.0, 1.0, B, K)},
    "law": {"noise": lambda g: LAW},
    "mask": {"noise": lambda g: NoiseLaw.absorbing(V, V - 1)},
    "normalize": {"normalize": lambda g: True},
    "ids": {"sample_ids": lambda g: torch.randint(2**40, (B,), generator=g)},
    "frozen": {"frozen": lambda g: torch.rand(B, L, generator=g) < 0.4},
    **{name: {name: None} for name in BY_PRODUCTS},
}


def paired_case(options, seed):
    """Tokens, logits, positions and the rest of a call, made anew."""
    generator = torch.Generator().manual_seed(seed)
    tokens, logits, positions, _ = arguments(seed)
    tokens.random_(V, generator=generator)
    made = {name: None if make is None else make(generator) for name, make in options.items()}
    positions = made.pop("positions", positions)
    rows = K if positions is not None else L
    if positions is None:
        logits = torch.randn(B, L, V, generator=generator)
    for name, value in made.items():
        if isinstance(value, torch.Tensor) and value.shape == (B, K):
            made[name] = value[:, :1].expand(B, rows).contiguous()
        if name in BY_PRODUCTS:
            made[name] = torch.full((B, rows), 7, dtype=torch.int64 if name == "argmax" else torch.float32)
    if "keep_prob" in made:
        made.setdefault("noise_rate", torch.full((B,), 0.5))
    return tokens, logits, positions, made


def pairs():
    """All pairs of options of different arguments; those beyond every sixth are slow."""
    found = [pair for pair in combinations(PAIRED, 2) if not PAIRED[pair[0]].keys() & PAIRED[pair[1]].keys()]
    for number, pair in enumerate(found):
        yield pytest.param(*pair, marks=[pytest.mark.slow] if number % 6 else [], id=" and ".join(pair))


@pytest.mark.parametrize(("first", "second"), list(pairs()))
def test_pairs_of_options_in_a_plan(first, second, planned):
    """As the call without a plan, to the bit, and as the reference has it."""
    options = {**PAIRED[first], **PAIRED[second]}
    if "noise" in options:
        law = options["noise"](None)
        options["noise"] = lambda g: law

    def results(seed, backend=None):
        case = paired_case(options, seed)
        step(*case[:3], {**case[3], "backend": backend}, seed=seed, step=5)
        return [case[0], *(case[3][name] for name in BY_PRODUCTS if name in case[3])]

    expected = [results(seed) for seed in range(2)]
    assert not planned
    for seed in range(4):
        of_plan = results(seed)
        assert len(planned) == seed + 1 and planned[-1] == 0
        if seed < 2:
            assert all(
                torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))
                for a, b in zip(of_plan, expected[seed], strict=True)
            )
        of_reference = results(seed, "reference")
        assert torch.equal(of_plan[0], of_reference[0])
        for ours, theirs in zip(of_plan[1:], of_reference[1:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6, equal_nan=True)
    assert len(planned) == 4


WRONG = {
    "position": (IndexError, lambda t, g, p, o: p.fill_(L)),
    "position twice": (IndexError, lambda t, g, p, o: p.fill_(1)),
    "token": (IndexError, lambda t, g, p, o: t.fill_(V)),
    "rate": (ValueError, lambda t, g, p, o: o["noise_rate"].fill_(2.0)),
    "rate that is no number": (ValueError, lambda t, g, p, o: o["noise_rate"].fill_(float("nan"))),
    "sample id": (ValueError, lambda t, g, p, o: o["sample_ids"].fill_(2**40)),
    "shared memory": (ValueError, lambda t, g, p, o: o.update(log_prob=o["log_sum_exp"])),
    "memory of the logits": (
        ValueError,
        lambda t, g, p, o: o.update(log_prob=g.view(-1)[: B * K].view(B, K)),
    ),
    "seed": (ValueError, lambda t, g, p, o: o.update(seed=2**64)),
    "seed of a type": (TypeError, lambda t, g, p, o: o.update(seed=True)),
    "step": (ValueError, lambda t, g, p, o: o.update(step=-1)),
    "normalize of a type": (TypeError, lambda t, g, p, o: o.update(normalize=1)),
    "temperature of a type": (TypeError, lambda t, g, p, o: o.update(temperature=True)),
    "law": (ValueError, lambda t, g, p, o: o.update(noise=NoiseLaw(torch.ones(1)))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_loses_no_check(name):
    def case(seed):
        return arguments(
            seed, noise_rate=torch.full((B,), 0.5), sample_ids=torch.arange(B), normalize=True, temperature=1,
            noise=LAW, **by_products(("log_sum_exp", "log_prob")),
        )  # fmt: skip

    for seed in range(2):
        step(*case(seed))
    error, spoil = WRONG[name]
    tokens, logits, positions, options = case(3)
    spoil(tokens, logits, positions, options)
    before = tokens.clone()
    with pytest.raises(error, match=name.split()[0] if name in ("seed", "step") else None):
        glauber_step(tokens, logits, positions, **({"seed": 1, "step": 0} | options))
    assert torch.equal(tokens, before)
    assert torch.equal(options["log_sum_exp"], torch.zeros(B, K))


WRONG_ROWS = {"temperature": -1, "top_k": 0, "top_p": 0, "min_p": 2, "mixture": 1.5}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_plan_looks_at_values_of_rows(name, planned):
    def case(seed):
        ones = {other: torch.ones(B, dtype=torch.int64 if other == "top_k" else None) for other in WRONG_ROWS}
        return arguments(seed, **ones, **by_products(("log_prob",)))

    for seed in range(3):
        step(*case(seed))
    assert planned == [0]
    tokens, logits, positions, options = case(3)
    options[name][1] = WRONG_ROWS[name]
    with pytest.raises(ValueError, match=rf"{name}\[1\]"):
        step(tokens, logits, positions, options)
    assert torch.equal(tokens, torch.zeros_like(tokens))
    assert torch.equal(options["log_prob"], torch.zeros(B, K))


def test_a_plan_does_not_write_what_rows_are_given_by(planned):
    def case(seed):
        return arguments(seed, temperature=torch.ones(B, K), **by_products(("log_prob",)))

    for seed in range(3):
        step(*case(seed))
    assert planned == [0]
    tokens, logits, positions, options = case(3)
    with pytest.raises(ValueError, match="log_prob"):
        step(tokens, logits, positions, {**options, "temperature": options["log_prob"].fill_(1)})


def test_a_call_that_cannot_be_planned_is_asked_once(planned, monkeypatch):
    """And one whose seed is a tensor says nothing of those whose seeds are numbers."""
    made = []
    make = plans.glauber_step
    monkeypatch.setattr(plans, "glauber_step", lambda *given: made.append(make(*given)) or made[-1])
    for seed in range(4):
        step(*arguments(seed, temperature=torch.ones(B, dtype=torch.float64)))
    assert made == [None] and not planned
    for seed in range(4):
        step(*arguments(seed), seed=torch.full((B,), seed))
    assert len(made) == 1
    make_plan()
    step(*arguments(2))
    assert planned == [0]


def test_what_looks_otherwise_has_no_plan(planned):
    make_plan()
    tokens, logits, positions, _ = arguments(2)
    step(tokens.int(), logits, positions, {})
    step(tokens, logits.double().float().transpose(0, 1).contiguous().transpose(0, 1), positions, {})
    step(tokens, logits, positions.int(), {})
    step(tokens, logits.requires_grad_(), positions, {})
    assert not planned


def test_wider_tensors_are_converted_every_time(planned):
    """Their addresses are not those that the core reads."""
    for seed in range(4):
        tokens, logits, positions, _ = arguments(seed)
        rate = torch.full((B,), 1.0 if seed % 2 else 0.0, dtype=torch.float64)
        step(tokens, logits, positions.int(), {"noise_rate": rate})
        expected = arguments(seed)[0]
        step(expected, logits, positions, {"noise_rate": rate.tolist()[0]})
        assert torch.equal(tokens, expected)


def test_autograd_learns_of_every_write(planned):
    make_plan(**by_products(("entropy",)))
    tokens, logits, positions, options = arguments(2, **by_products(("entropy",)))
    versions = tokens._version, options["entropy"]._version
    step(tokens, logits, positions, options)
    assert planned == [0]
    assert (tokens._version, options["entropy"]._version) == (versions[0] + 1, versions[1] + 1)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference(mode, planned):
    results = []
    for context in (nullcontext(), mode()):
        with context:
            for _ in range(3):
                results.append(step(*arguments(0)).tolist())
    assert all(result == results[0] for result in results)
    assert planned


def test_whoever_looks_on_sees_the_op(planned):
    make_plan()
    tokens, logits, positions, _ = arguments(2)
    run = lambda tokens, logits: glauber_step(tokens, logits, positions, seed=1, step=0)  # noqa: E731
    graph = make_fx(run)(tokens.clone(), logits).code
    with torch.profiler.profile() as profile:
        run(tokens.clone(), logits)
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.vmap(run)(tokens.expand(2, B, L).clone(), logits.expand(2, B, K, V).clone())
    compiled = torch.compile(run, fullgraph=True, backend="eager")(tokens.clone(), logits)
    assert "ggm_kernels.glauber_step" in graph
    assert any(event.key == "ggm_kernels::glauber_step" for event in profile.key_averages())
    assert not planned
    assert torch.equal(compiled, run(tokens, logits))
    assert planned


def test_a_view_that_negates_is_negated(planned):
    """Its memory holds the numbers before: no look at it may take it for them."""
    make_plan()
    tokens, logits, positions, _ = arguments(2)
    negated = torch.complex(torch.zeros_like(logits), -logits).conj().imag
    expected = step(tokens.clone(), negated.clone().contiguous(), positions, {})
    before = len(planned)
    assert negated.is_neg()
    assert torch.equal(step(tokens, negated, positions, {}), expected)
    assert len(planned) == before


def test_the_environment_is_asked_every_time(planned, monkeypatch):
    make_plan()
    tokens, logits, positions, _ = arguments(2)
    monkeypatch.setenv("GGM_KERNELS_BACKEND", "nothing")
    with pytest.raises(ValueError, match="nothing"):
        step(tokens, logits, positions, {})
    monkeypatch.delenv("GGM_KERNELS_BACKEND")
    monkeypatch.setenv("GGM_KERNELS_CHECK", "1")
    logits[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"logits\[1, 1\]"):
        step(tokens, logits, positions, {})
    assert not planned


def test_plans_are_let_go_of(planned):
    made = sys.modules["ggm_kernels.ops.glauber_step"]._PLANS
    for number in range(200):
        make_plan(temperature=1.0 + number)
        assert len(made._made) <= 64
    step(*arguments(0, temperature=200.0))
    assert planned == [0]


@pytest.mark.parametrize("kept", ["logits", "temperature", "mixture"])
def test_a_plan_that_keeps_an_address_is_seen(kept, planned, monkeypatch):
    """Planted fault: a tensor of the call that made the plan."""
    run = plans.Plan.run

    def faulty(self, given, *rest):
        _, logits, _, options = calls[1]
        return run(self, {**given, kept: {"logits": logits, **options}[kept]}, *rest)

    def case(seed):  # the last one draws from another law
        options = {"temperature": torch.ones(B), "mixture": torch.ones(B)}
        if seed == 5 and kept in options:
            options[kept].zero_()
        return arguments(seed, **options)

    calls = [case(seed) for seed in (0, 1, 5)]  # at addresses of their own
    expected = step(calls[-1][0].clone(), *calls[-1][1:])
    monkeypatch.setattr("ggm_kernels.ops.glauber_step._PLANS", Plans("glauber_step"))
    monkeypatch.setattr(plans.Plan, "run", faulty)
    results = [step(*call) for call in calls]
    assert planned == [0]
    assert not torch.equal(results[-1], expected)
