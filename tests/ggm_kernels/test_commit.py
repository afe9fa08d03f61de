"""`commit` against brute force: the order of candidates, every criterion, what becomes of the rest."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_independence, check_law

from ggm_kernels import NoiseLaw, Stream, commit, corrupt, native

OP = "commit"
INF, NAN = math.inf, math.nan
ANYTHING = {"seed": 1, "step": 0}


def accepted_by(score, eligible=None, count=None, threshold=None, budget=None) -> list[bool]:
    """Of one row, in exact arithmetic."""
    eligible = [True] * len(score) if eligible is None else eligible
    candidates = [
        i
        for i, value in enumerate(score)
        if eligible[i] and value == value and (threshold is None or value >= threshold)
    ]
    candidates.sort(key=lambda i: (-score[i], i))
    accepted, spent = [False] * len(score), Fraction(0)
    for rank, i in enumerate(candidates):
        if (count is not None and rank >= count) or (budget is not None and spent > budget):
            break
        accepted[i] = True
        if score[i] == -INF:
            spent = INF
        elif score[i] != INF:
            spent -= Fraction(score[i])
    return accepted


def decided(score, backend, dtype=torch.int64, **arguments):
    """Where `commit` accepts, after a look at what it writes."""
    tokens = torch.arange(score.numel()).view(score.shape).to(dtype)
    proposal = tokens + 1000
    accepted = torch.rand(score.shape) < 0.5  # to be overwritten
    result = commit(tokens, proposal, score, accepted=accepted, backend=backend, **{**ANYTHING, **arguments})
    assert result is tokens
    before = proposal - 1000
    if arguments.get("rest", "keep") == "keep":
        assert torch.equal(tokens, torch.where(accepted, proposal, before))
    else:
        eligible = arguments.get("eligible")
        left = ~accepted if eligible is None else ~accepted & eligible
        assert torch.equal(tokens[~left], torch.where(accepted, proposal, before)[~left])
    return accepted


# What is accepted

COARSE = st.sampled_from([-2.0, -1.5, -0.25, -0.0, 0.0, 0.25, 1.0, 3.0, INF, -INF, NAN])
FINE = st.floats(-64, 64, width=16)


@st.composite
def problems(draw):
    length = draw(st.sampled_from([1, 2, 3, 7, 16, 33]))
    batch = draw(st.integers(1, 3))
    values = draw(st.sampled_from([COARSE, FINE, st.floats(-8, 0, width=16)]))
    rows = st.lists(values, min_size=length, max_size=length)
    masks = st.lists(st.booleans(), min_size=length, max_size=length)
    per_row = {
        "count": st.integers(0, length + 1),
        "threshold": st.one_of(values.filter(lambda value: value == value)),
        "budget": st.one_of(st.floats(0, 32, width=16), st.just(INF)),
    }
    limits = {
        name: draw(st.one_of(kind, st.lists(kind, min_size=batch, max_size=batch)))
        for name, kind in per_row.items()
        if draw(st.booleans())
    }
    score = [draw(rows) for _ in range(batch)]
    eligible = [draw(masks) for _ in range(batch)] if draw(st.booleans()) else None
    return score, eligible, limits


def as_argument(limit):
    return torch.tensor(limit) if isinstance(limit, list) else limit


def test_accepted_is_what_brute_force_accepts(backend):
    examples = 15 if backend == "triton" else 150  # interpreted, it takes a tenth of a second
    check = settings(deadline=None, max_examples=examples)(
        given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.float16]))(
            lambda problem, dtype: check_brute_force(backend, *problem, dtype)
        )
    )
    check()


def check_brute_force(backend, score, eligible, limits, dtype):
    arguments = {name: as_argument(limit) for name, limit in limits.items()}
    if eligible is not None:
        arguments["eligible"] = torch.tensor(eligible)
    accepted = decided(torch.tensor(score, dtype=dtype), backend, **arguments)
    for row in range(len(score)):
        own = {name: limit[row] if isinstance(limit, list) else limit for name, limit in limits.items()}
        expected = accepted_by(score[row], None if eligible is None else eligible[row], **own)
        assert accepted[row].tolist() == expected


@pytest.mark.parametrize("scale", [2.0**-149, 1e-30, 1e-3, 1.0, 1e30, 1e38])
@pytest.mark.parametrize("sign", [-1, 1])
def test_budgets_of_every_size(backend, scale, sign):
    generator = torch.Generator().manual_seed(3)
    cost = torch.randint(0, 3, (4, 40), generator=generator) * scale
    cost[:, 1] = sign * 3 * scale  # a gain, which makes room
    budget = torch.tensor([0.0, 1.0, 7.0, 1000.0]) * scale
    accepted = decided(-cost, backend, budget=budget)
    for row in range(4):
        expected = accepted_by((-cost[row]).tolist(), budget=float(budget[row]))
        assert accepted[row].tolist() == expected


@pytest.mark.parametrize("gain", [0.0, 2.5, 1e9])
@pytest.mark.parametrize(
    "mask", [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, -1e20, -1e9]
)
def test_scores_that_masks_fill_cost_the_others_no_precision(backend, mask, gain):
    generator = torch.Generator().manual_seed(3)
    score = -torch.rand(4, 40, generator=generator)
    score[torch.rand(4, 40, generator=generator) < 0.4] = mask
    score[:, 7] = gain
    budget = torch.tensor([0.0, 0.3, 2.5, 1000.0])
    accepted = decided(score, backend, budget=budget)
    for row in range(4):
        assert accepted[row].tolist() == accepted_by(score[row].tolist(), budget=float(budget[row]))


def entropies(shape, seed=0):
    logits = 4 * torch.randn(*shape, 50, generator=torch.Generator().manual_seed(seed))
    return torch.distributions.Categorical(logits=logits).entropy()


def test_the_entropy_bound_is_that_of_a_sorted_running_sum(backend):
    entropy = entropies((8, 300))
    ordered, order = entropy.double().sort(dim=1, stable=True)
    within = ordered.cumsum(1) - ordered <= 3.0
    expected = torch.zeros_like(within).scatter(1, order, within)
    assert torch.equal(decided(-entropy, backend, budget=3.0), expected)
    assert 0.02 < expected.float().mean() < 0.9


def test_the_largest_scores_by_topk(backend):
    score = torch.rand(5, 300, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(5, 300, dtype=torch.bool).scatter(1, score.topk(17, dim=1).indices, True)
    assert torch.equal(decided(score, backend, count=17), expected)


def test_equal_scores_go_by_position(backend):
    score = torch.zeros(2, 6)
    score[0, 2] = -0.0
    assert decided(score, backend, count=3).int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    cost = torch.full((1, 6), 0.5)
    assert decided(-cost, backend, budget=1.0).int().tolist() == [[1, 1, 1, 0, 0, 0]]
    assert decided(-cost, backend, budget=0.99).int().tolist() == [[1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_limits_are_taken_as_float32(backend, dtype):
    score = torch.tensor([[0.9, 0.1, 0.9]], dtype=dtype)
    equal = float(score[0, 0].float())
    assert decided(score, backend, threshold=equal).tolist() == [[True, False, True]]
    above = torch.tensor(equal).nextafter(torch.tensor(1.0))
    assert not decided(score, backend, threshold=above.double()).any()
    if dtype == torch.float32:
        assert decided(score, backend, threshold=0.9).tolist() == [[True, False, True]]


def test_nan_is_never_accepted_and_infinity_first(backend):
    score = torch.tensor([[NAN, -INF, 0.0, INF, NAN, 5.0]])
    for arguments, expected in [
        ({}, [0, 1, 1, 1, 0, 1]),
        ({"count": 1}, [0, 0, 0, 1, 0, 0]),
        ({"count": 100}, [0, 1, 1, 1, 0, 1]),
        ({"threshold": -INF}, [0, 1, 1, 1, 0, 1]),
        ({"threshold": INF}, [0, 0, 0, 1, 0, 0]),
    ]:
        assert decided(score, backend, **arguments).int().tolist() == [expected]
    score = torch.tensor([[-INF, -1.0, INF, -INF, -2.0]])
    for budget, expected in [
        (0.0, [0, 1, 1, 0, 0]),
        (2.0, [0, 1, 1, 0, 1]),
        (3.0, [1, 1, 1, 0, 1]),
        (INF, [1] * 5),
    ]:
        assert decided(score, backend, budget=budget).int().tolist() == [expected]


def test_at_least_one_above_a_threshold(backend):
    """Fast-dLLM's rule: all that are sure, and the surest in any case."""
    score = torch.tensor([[0.2, 0.95, 0.91], [0.3, 0.6, 0.1]])
    threshold = score.amax(1).clamp_max(0.9)
    assert decided(score, backend, threshold=threshold).int().tolist() == [[0, 1, 1], [0, 1, 0]]


def test_nobody_to_accept(backend):
    score = torch.rand(3, 50)
    assert not decided(score, backend, count=0, rest="noise", vocab_size=5).any()
    assert not decided(score, backend, eligible=torch.zeros(3, 50, dtype=torch.bool), budget=1.0).any()
    assert not decided(torch.full((3, 50), NAN), backend, count=4, budget=1.0).any()
    assert not decided(score, backend, threshold=2.0, count=4).any()


def test_rows_count_for_themselves(backend):
    score, ids = torch.randn(5, 40), torch.tensor([9, 2**40 - 1, 0, 2**33, 4])
    limits = {
        "count": torch.tensor([0, 3, 40, 99, 7]),
        "budget": torch.rand(5) * 9,
        "threshold": -torch.rand(5),
    }
    options = {"rest": "noise", "vocab_size": 17, **ANYTHING, "backend": backend}
    whole = commit(
        torch.zeros(5, 40).long(), torch.ones(5, 40).long(), score, **limits, sample_ids=ids, **options
    )
    for row in range(5):
        own = {name: limit[row] for name, limit in limits.items()}
        part = slice(row, row + 1)
        alone = commit(
            torch.zeros(1, 40).long(),
            torch.ones(1, 40).long(),
            score[part],
            **own,
            sample_ids=ids[part],
            **options,
        )
        assert torch.equal(alone, whole[part])


# What becomes of the rest


def noised(backend, batch=16, length=2000, **arguments):
    tokens, proposal = torch.full((batch, length), 99), torch.full((batch, length), 98)
    arguments = {"threshold": INF, "rest": "noise", **ANYTHING, **arguments}
    return commit(tokens, proposal, torch.zeros(batch, length), backend=backend, **arguments)


def some_law(vocab_size):
    probs = torch.rand(vocab_size, generator=torch.Generator().manual_seed(0)).pow(4).double()
    probs[vocab_size // 2] = 0
    return NoiseLaw(probs / probs.sum())


def test_the_rest_follows_the_law_of_noise(backend):
    check_law(noised(backend, vocab_size=5), torch.ones(5))
    law = some_law(7)
    check_law(noised(backend, noise=law), law.probs)
    assert (noised(backend, noise=NoiseLaw.absorbing(7, 7)) == 7).all()


def test_noise_is_independent_across_every_coordinate_and_of_other_streams(backend):
    base = noised(backend, vocab_size=5)
    check_independence(base[:, :-1], base[:, 1:], 5)
    check_independence(base[:-1], base[1:], 5)
    check_independence(base, noised(backend, vocab_size=5, seed=2), 5)
    check_independence(base, noised(backend, vocab_size=5, step=1), 5)
    check_independence(base, noised(backend, vocab_size=5, sample_ids=torch.arange(1, 17)), 5)
    zeros = torch.zeros(16, 2000).long()
    others = [
        torch.ops.ggm_kernels.corrupt(
            zeros, torch.zeros(()), 5, 1, 0, None, None, None, None, stream, "reference"
        )
        for stream in set(Stream) - {Stream.COMMIT}
    ]
    for other, _ in others:
        check_independence(base, other, 5)
    with pytest.raises(AssertionError):  # the noise of the stream of corrupt
        check_independence(others[0][0], corrupt(zeros, 0.0, 5, seed=1)[0], 5)


@pytest.mark.parametrize("law", [None, some_law(17), NoiseLaw.absorbing(17, 3)])
def test_the_words_are_those_of_a_token_stream(backend, law):
    ids = torch.tensor([3, 2**39, 7, 0])
    arguments = {"seed": 2**64 - 5, "step": torch.tensor(2**32 - 1)}
    tokens = noised(backend, 4, 771, noise=law, vocab_size=17, sample_ids=ids, **arguments)
    table = None if law is None or law.mask_id is not None else law.table(torch.device("cpu"))
    expected, _ = torch.ops.ggm_kernels.corrupt(
        torch.zeros(4, 771).long(), torch.zeros(()), 17, -5, 0, arguments["step"], ids, None, table,
        int(Stream.COMMIT), "reference", None if law is None else law.mask_id,
    )  # fmt: skip
    assert torch.equal(tokens, expected)


def test_only_eligible_positions_are_noised(backend):
    eligible = torch.rand(3, 500, generator=torch.Generator().manual_seed(2)) < 0.5
    score = torch.rand(3, 500)
    score[:, ::11] = NAN
    tokens = torch.full((3, 500), 99)
    accepted = torch.zeros(3, 500, dtype=torch.bool)
    arguments = {"count": 20, "eligible": eligible, "rest": "noise", "vocab_size": 17, **ANYTHING}
    commit(tokens, torch.full((3, 500), 98), score, accepted=accepted, backend=backend, **arguments)
    assert (tokens[~eligible] == 99).all()
    assert (tokens[accepted] == 98).all() and (accepted.sum(1) == 20).all()
    rest = eligible & ~accepted
    assert (tokens[rest] < 17).all()
    assert (rest & score.isnan()).any()
    assert torch.equal(tokens[rest], noised(backend, 3, 500, vocab_size=17)[rest])


# The same bits everywhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 31, 256, 1025, 5003])
def test_backends_agree_to_the_bit(backend, length, dtype):
    if backend == "triton" and dtype != torch.float32 and length > 1000:
        pytest.skip("interpreted, it takes seconds")
    generator = torch.Generator().manual_seed(length)
    score = (torch.randn(3, length, generator=generator) * 4).to(dtype)
    score[0] = score[0].round()  # many equal ones
    eligible = torch.rand(3, length, generator=generator) < 0.9
    limits = {
        "count": torch.tensor([length // 3, length // 2, length], dtype=torch.int32),
        "threshold": torch.tensor([-9.0, -1.0, 0.5]),
        "budget": torch.tensor([2.0, 0.5 * length, 3.0]),
    }
    combinations = [["count"], ["budget"], ["threshold"], ["count", "budget"], [], list(limits)]
    for names in combinations if backend != "triton" else combinations[-1:]:
        arguments = {name: limits[name] for name in names}
        for sign, rest in ((1, "keep"), (-1, "noise")):
            results = []
            for name in (backend, "reference"):
                tokens, accepted = torch.full((3, length), 99, dtype=torch.int32), torch.ones(3, length) > 0
                commit(
                    tokens, torch.arange(3 * length).view(3, length), sign * score.abs() if sign < 0 else score,
                    **arguments, eligible=eligible, rest=rest, noise=some_law(17), accepted=accepted,
                    backend=name, **ANYTHING,
                )  # fmt: skip
                results.append((tokens, accepted))
            assert torch.equal(results[0][0], results[1][0])
            assert torch.equal(results[0][1], results[1][1])


@pytest.mark.skipif(native.core is None, reason="no compiled core")
@pytest.mark.parametrize("isa", native.core.isas() if native.core else [])
@pytest.mark.parametrize("threads", [1, 3])
def test_instruction_sets_and_threads_change_nothing(isa, threads):
    score = -entropies((20, 700))
    arguments = {"budget": 5.0, "count": 300, "rest": "noise", "noise": some_law(17), **ANYTHING}

    def run(backend):
        return commit(
            torch.zeros(20, 700).long(), torch.ones(20, 700).long() * 99, score, backend=backend, **arguments
        )

    before, threads_before = native.core.isa(), torch.get_num_threads()
    native.core.select_isa(isa)
    torch.set_num_threads(threads)
    try:
        tokens = run("cpu")
    finally:
        native.core.select_isa(before)
        torch.set_num_threads(threads_before)
    assert torch.equal(tokens, run("reference"))


# Layouts


@pytest.mark.parametrize("types", [(torch.int32, torch.int64), (torch.int64, torch.int32)])
def test_strided_tensors_of_either_type(backend, types):
    generator = torch.Generator().manual_seed(5)
    memory = torch.zeros(6, 90, dtype=types[0])
    tokens = memory[::2, 1::3]
    proposal = torch.randint(100, 200, (30, 3), generator=generator).to(types[1]).T
    score = torch.randn(3, 60, generator=generator)[:, ::2]
    eligible = torch.tensor([[True], [False], [True]]).expand(3, 30)
    marks = torch.zeros(30, 3, dtype=torch.bool)
    arguments = {
        "count": torch.tensor([[4], [5], [6]])[:, 0],
        "budget": torch.tensor(3.0).expand(3),
        **ANYTHING,
    }
    expected = commit(
        torch.zeros(3, 30, dtype=types[0]), proposal.contiguous(), score.contiguous(),
        eligible=eligible.contiguous(), backend="reference", **arguments,
    )  # fmt: skip
    commit(tokens, proposal, score, eligible=eligible, accepted=marks.T, backend=backend, **arguments)
    assert torch.equal(tokens, expected) and (expected > 0).any()
    assert torch.equal(marks.T, expected > 0)
    memory[::2, 1::3] = 0
    assert not memory.any()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("limits", [{}, {"count": 3}, {"budget": 1.0, "threshold": 0.0}])
def test_empty_batches(backend, shape, limits):
    tokens = torch.zeros(shape).long()
    accepted = torch.zeros(shape, dtype=torch.bool)
    arguments = {"rest": "noise", "vocab_size": 5, "accepted": accepted, "backend": backend, **ANYTHING}
    assert commit(tokens, tokens.clone(), torch.zeros(shape), **limits, **arguments) is tokens


def test_inputs_stay_and_any_id_passes(backend):
    tokens, proposal = torch.full((2, 5), 2**40), torch.full((2, 5), -7)
    score, eligible = torch.rand(2, 5), torch.rand(2, 5) < 0.8
    before = [proposal.clone(), score.clone(), eligible.clone()]
    commit(tokens, proposal, score, count=2, eligible=eligible, backend=backend, **ANYTHING)
    assert set(tokens.flatten().tolist()) == {2**40, -7}
    for value, old in zip([proposal, score, eligible], before, strict=True):
        assert torch.equal(value, old)
