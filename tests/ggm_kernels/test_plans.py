"""Calls that look like an earlier one take a short way, which may change nothing but the time."""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import ggm_kernels
from ggm_kernels import NoiseLaw, commit, corrupt, glauber_step
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS
from ggm_kernels.native import plans
from ggm_kernels.ops.plans import Plans

pytestmark = pytest.mark.skipif(not ggm_kernels.backends()["cpu"], reason="plans are of the compiled core")

B, L, K, V = 3, 5, 2, 7
LAW = NoiseLaw(torch.full((V,), 1 / V))


@pytest.fixture(autouse=True)
def planned(monkeypatch):
    """Counts the calls that a plan has served."""
    served = []
    run = plans.Plan.run

    def counted(self, *arguments):
        served.append(run(self, *arguments))
        return served[-1]

    monkeypatch.setattr(plans.Plan, "run", counted)
    for op in ("glauber_step", "commit", "corrupt"):
        monkeypatch.setattr(f"ggm_kernels.ops.{op}._PLANS", Plans(op))
    return served


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


def test_a_plan_that_keeps_an_address_is_seen(planned, monkeypatch):
    """Planted fault: the logits of the call that made the plan."""
    make = plans.Plan.__init__

    def faulty(self, *arguments):
        make(self, *arguments)
        self._moving = [(place, name) for place, name in self._moving if name != "logits"]

    calls = [arguments(seed) for seed in (0, 1, 5)]  # at addresses of their own
    expected = step(calls[-1][0].clone(), *calls[-1][1:])
    monkeypatch.setattr("ggm_kernels.ops.glauber_step._PLANS", Plans("glauber_step"))
    monkeypatch.setattr(plans.Plan, "__init__", faulty)
    results = [step(*call) for call in calls]
    assert planned == [0]
    assert not torch.equal(results[-1], expected)


# commit and corrupt

COMMITS = {
    "all": {},
    "count": {"count": 2, "accepted": torch.zeros(B, L).bool()},
    "counts": {"count": torch.tensor([0, 1, 2]), "eligible": torch.eye(B, L).bool()},
    "limits": {"threshold": 0.2, "budget": torch.full((B,), 1.0), "rest": "noise", "noise": LAW},
    "noise": {"budget": 0.5, "rest": "noise", "vocab_size": V, "sample_ids": torch.tensor([4, 2, 0])},
}


@pytest.mark.parametrize("name", COMMITS)
def test_a_planned_commit_is_the_commit(name, planned):
    proposal, score = torch.arange(B * L).view(B, L), torch.rand(B, L)

    def result(step):
        tokens = torch.full((B, L), -1)
        commit(tokens, proposal, score, seed=2**64 - 1, step=step, **COMMITS[name])
        return tokens, torch.as_tensor(COMMITS[name].get("accepted", 0)).clone()

    expected = [result(step) for step in range(2)]
    assert not planned
    for step in range(2):
        assert all(map(torch.equal, result(step), expected[step]))
    assert planned == [0, 0]


@pytest.mark.parametrize(
    "keep_prob",
    [0.5, torch.rand(B), torch.rand(B, L), torch.rand(B, 1)],
    ids=["number", "by row", "by position", "column"],
)
@pytest.mark.parametrize("noise", [None, LAW, NoiseLaw.absorbing(V, V)], ids=str)
def test_a_planned_corrupt_is_corrupt(keep_prob, noise, planned):
    tokens = torch.randint(V, (B, L))
    frozen, ids = torch.eye(B, L).bool(), torch.tensor([4, 2, 0])

    def result(step):
        return corrupt(
            tokens.clone(), keep_prob, V, seed=3, step=step, noise=noise, frozen=frozen, sample_ids=ids
        )

    expected = [result(step) for step in range(2)]
    assert not planned
    for step in range(2):
        assert all(map(torch.equal, result(step), expected[step]))
    assert planned == [0, 0]


def test_plans_of_commit_and_corrupt_lose_no_check(planned):
    proposal, score, counts = torch.zeros(B, L).long(), torch.rand(B, L), torch.ones(B).long()
    keep_prob = torch.rand(B)
    for _ in range(3):
        tokens = torch.zeros(B, L).long()
        commit(tokens, proposal, score, count=counts, seed=1, step=0)
        corrupt(tokens, keep_prob, V, seed=1)
    assert planned == [0, 0]
    with pytest.raises(ValueError, match="proposal"):
        commit(tokens, tokens, score, count=counts, seed=1, step=0)
    with pytest.raises(ValueError, match="count"):
        commit(tokens, proposal, score, count=counts - 2, seed=1, step=0)
    with pytest.raises(ValueError, match="keep_prob"):
        corrupt(tokens, keep_prob + 1, V, seed=1)
    with pytest.raises(IndexError, match="tokens"):
        corrupt(tokens + V, keep_prob, V, seed=1)
    for wrong, error in ((-1, ValueError), (2**64, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="seed"):
            commit(tokens, proposal, score, count=counts, seed=wrong, step=0)
        with pytest.raises(error, match="seed"):
            corrupt(tokens, keep_prob, V, seed=wrong)
