"""The losses by enumeration: equal expectations, one minimiser, and checks that notice faults."""

import dataclasses

import pytest
import torch
from enumerable import FALSE_ALARM, law_at, noise_law, potts_ring, skewed, uneven_chain, uniform
from torch.nn.functional import softplus

from ggm.objective import (
    ObjectiveConfig,
    Visits,
    WeightedCandidates,
    cross_entropy_from_hidden,
    loss_from_logits,
    weighted_candidates,
)

DATA = potts_ring(length=3)
VOCAB = DATA.vocab_size
CHAIN = uneven_chain(DATA.length)
NOISES = {"uniform": uniform(VOCAB), "skewed": skewed(VOCAB)}
TIMES = range(2 * DATA.length)  # the last sweep is all noise: there eps is 1 and no signal is left


class Case:
    """All outcomes (x0_i, X_{t,-i}, X_{t,i}) at one step of the chain, with probabilities.

    The position is that of step `visit`, by default of step t itself. A hollow network predicts those
    of all visits in the sweep of t.
    """

    def __init__(self, time: int, pi: torch.Tensor, visit: int | None = None) -> None:
        visit = time if visit is None else visit
        self.time, self.pi, self.noise = time, pi, noise_law(pi)
        self.position = int(CHAIN.positions[visit])
        self.alpha = CHAIN.keep_prob(torch.tensor([time]))[0, self.position]
        self.rate = CHAIN.noise_rate[visit]
        keep = CHAIN.keep_prob(torch.tensor([time]))[0].tolist()
        keep[self.position] = 1.0
        # Everything but the position itself is noised: states hold x0_i beside X_{t,-i}.
        law = DATA.noised(keep, pi)
        states, probs = law.states(), law.probs.flatten()
        others = [i for i in range(DATA.length) if i != self.position]
        powers = VOCAB ** torch.arange(len(others) - 1, -1, -1)
        self.contexts = VOCAB ** len(others)
        context = (states[:, others] * powers).sum(-1)
        data = states[:, self.position]
        kept = self.alpha * torch.eye(VOCAB, dtype=torch.float64) + (1 - self.alpha) * pi
        joint = probs[:, None] * kept[data]  # [states, X_{t,i}]
        self.probs = joint.flatten()
        self.context = context.repeat_interleave(VOCAB)
        self.data = data.repeat_interleave(VOCAB)
        self.current = torch.arange(VOCAB).repeat(len(states))

    def true_logits(self) -> torch.Tensor:
        """log P(X_{t,i} = . | X_{t,-i}) of every context, float64 [contexts, V]."""
        law = law_at(DATA, CHAIN, self.time, self.pi)
        rows = torch.zeros(self.contexts, VOCAB, dtype=torch.float64)
        return rows.index_copy(0, self.context[::VOCAB], law.log_conditional(*self._states()))

    def _states(self):
        states = DATA.states()
        return states, self.position

    def visits(self) -> Visits:
        rows = len(self.probs)
        return Visits(
            sample_ids=torch.arange(rows),
            data=self.data[:, None],
            current=self.current[:, None],
            keep_prob=self.alpha.expand(rows, 1),
            noise_rate=self.rate.expand(rows, 1),
        )

    def candidates(self, config: ObjectiveConfig) -> WeightedCandidates:
        return weighted_candidates(config, self.visits(), VOCAB, seed=3, step=1, noise=self.noise)

    def expectation(self, g: torch.Tensor, candidates: WeightedCandidates) -> torch.Tensor:
        """Expected loss of the table g [contexts, V], exact but for float32 weights."""
        return self.probs @ loss_from_logits(g[self.context], candidates, self.noise)

    def cross_entropy(self, g: torch.Tensor, visits: Visits) -> torch.Tensor:
        """Expected cross-entropy of the table g [contexts, V], as a head of hidden states that name contexts."""
        hidden = torch.eye(self.contexts, dtype=g.dtype)[self.context]
        losses = cross_entropy_from_hidden(hidden, g.T, g.new_zeros(VOCAB), visits, self.noise)
        return self.probs @ losses

    def paper_expectation(self, g: torch.Tensor) -> torch.Tensor:
        """Expected loss of the paper by its definition: over X_t and Z, at the observed token."""
        f = g + torch.log1p(-self.rate) - self.rate.log() - self.pi.log()
        f = f[self.context]
        kept = softplus(-f.gather(1, self.current[:, None]))[:, 0]
        replaced = (self.pi * softplus(f)).sum(1)
        return self.probs @ ((1 - self.rate) * kept + self.rate * replaced)


def some_table(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(case.contexts, VOCAB, generator=generator, dtype=torch.float64)


def check_expectation(case: Case, candidates: WeightedCandidates) -> None:
    """The expected loss is the paper's, whatever the table."""
    g = some_table(case)
    torch.testing.assert_close(case.expectation(g, candidates), case.paper_expectation(g), rtol=1e-6, atol=0)


def check_minimiser(case: Case, candidates: WeightedCandidates) -> None:
    """The loss is convex in g, and its gradient vanishes at the true conditionals."""
    g = case.true_logits().requires_grad_()
    (gradient,) = torch.autograd.grad(case.expectation(g, candidates), g)
    # Weights are float32: what cancels is of the order of the noise weight.
    scale = float(candidates.noise.max()) + 1.0
    assert gradient.abs().max() < 1e-6 * scale, "gradient at the true conditionals is not 0"


def check_minimiser_of_cross_entropy(case: Case, visits: Visits, constant: float = 0.0) -> None:
    """Its minimisers are the true conditionals plus any constant."""
    g = (case.true_logits() + constant).requires_grad_()
    (gradient,) = torch.autograd.grad(case.cross_entropy(g, visits), g)
    assert gradient.abs().max() < 1e-6, "gradient at the true conditionals is not 0"


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("form", ["summed", "marginal"])
def test_sums_have_the_expectation_of_the_paper(form, time, noise):
    case = Case(time, NOISES[noise])
    check_expectation(case, case.candidates(ObjectiveConfig(form)))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("noise_ratio", [None, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("form", ["summed", "marginal"])
def test_true_conditionals_minimise_every_loss(form, noise_ratio, time, noise):
    case = Case(time, NOISES[noise])
    check_minimiser(case, case.candidates(ObjectiveConfig(form, noise_ratio=noise_ratio)))


@pytest.mark.parametrize("form", ["summed", "marginal", "cross_entropy"])
@pytest.mark.parametrize(("time", "visit"), [(4, 3), (4, 5), (3, 5), (0, 2), (2, 0)])
def test_true_conditionals_of_other_positions_minimise_too(time, visit, form):
    case = Case(time, NOISES["skewed"], visit)
    if form == "cross_entropy":
        check_minimiser_of_cross_entropy(case, case.visits())
    else:
        check_minimiser(case, case.candidates(ObjectiveConfig(form)))


@pytest.mark.parametrize("constant", [0.0, 2.5])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("time", TIMES)
def test_true_conditionals_minimise_cross_entropy_whatever_their_normalisation(time, noise, constant):
    case = Case(time, NOISES[noise])
    check_minimiser_of_cross_entropy(case, case.visits(), constant)
    # At its minimum it is the entropy of X_{t,i} given X_{t,-i}.
    g = case.true_logits()
    weights = torch.zeros(case.contexts, dtype=torch.float64).index_add(0, case.context, case.probs)
    entropy = weights @ -(g.exp() * g).sum(1)
    found = case.cross_entropy(g + constant, case.visits())
    torch.testing.assert_close(found, entropy, rtol=1e-9, atol=0)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("fault", ["alpha for 1 - alpha", "data for X_t"])
def test_check_of_cross_entropy_notices(fault, noise):
    case = Case(4, NOISES[noise])
    visits = case.visits()
    keep_prob = torch.ones_like(visits.keep_prob) if fault == "data for X_t" else 1 - visits.keep_prob
    visits = dataclasses.replace(visits, keep_prob=keep_prob)
    with pytest.raises(AssertionError):
        check_minimiser_of_cross_entropy(case, visits)


def _mean_loss(config: ObjectiveConfig, case: Case, count: int) -> tuple[float, float]:
    """Mean and its standard error over `count` outcomes with drawn labels or candidates."""
    generator = torch.Generator().manual_seed(6)
    index = torch.multinomial(case.probs, count, replacement=True, generator=generator)
    visits = Visits(
        sample_ids=torch.arange(count),
        data=case.data[index, None],
        current=case.current[index, None],
        keep_prob=case.alpha.expand(count, 1),
        noise_rate=case.rate.expand(count, 1),
    )
    candidates = weighted_candidates(config, visits, VOCAB, seed=7, step=1, noise=case.noise)
    losses = loss_from_logits(some_table(case)[case.context[index]], candidates, case.noise)
    return float(losses.mean()), float(losses.std()) / count**0.5


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig("observed"),
        ObjectiveConfig("summed", candidates=2),
        ObjectiveConfig("marginal", candidates=1),
    ],
    ids=lambda config: config.form,
)
def test_drawn_labels_and_candidates_have_the_expectation_of_the_paper(config, noise):
    case = Case(4, NOISES[noise])
    mean, error = _mean_loss(config, case, 200_000)
    # Two-sided normal quantile of the false-alarm rate.
    quantile = float(torch.special.ndtri(torch.tensor(1 - FALSE_ALARM / 2, dtype=torch.float64)))
    gap = abs(mean - float(case.paper_expectation(some_table(case))))
    assert gap < quantile * error


def _mean_loss_of_shared(config: ObjectiveConfig, case: Case, change=None) -> tuple[float, float]:
    """Mean and its standard error over steps: rows of one step share their draws."""
    means = []
    for step in range(400):
        generator = torch.Generator().manual_seed(step)
        index = torch.multinomial(case.probs, 200, replacement=True, generator=generator)
        visits = Visits(
            sample_ids=torch.arange(200),
            data=case.data[index, None],
            current=case.current[index, None],
            keep_prob=case.alpha.expand(200, 1),
            noise_rate=case.rate.expand(200, 1),
        )
        candidates = weighted_candidates(config, visits, VOCAB, seed=7, step=step, noise=case.noise)
        candidates = candidates if change is None else change(candidates)
        losses = loss_from_logits(some_table(case)[case.context[index]], candidates, case.noise)
        means.append(losses.mean())
    steps = torch.stack(means)
    return float(steps.mean()), float(steps.std()) / len(steps) ** 0.5


SHARED = [
    ObjectiveConfig("summed", shared_candidates=5),
    ObjectiveConfig("summed", candidates=2, shared_candidates=3),
    ObjectiveConfig("marginal", candidates=1, shared_candidates=6),
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("config", SHARED, ids=str)
def test_shared_candidates_have_the_expectation_of_the_paper(config, noise):
    case = Case(4, NOISES[noise])
    mean, error = _mean_loss_of_shared(config, case)
    quantile = float(torch.special.ndtri(torch.tensor(1 - FALSE_ALARM / 2, dtype=torch.float64)))
    assert abs(mean - float(case.paper_expectation(some_table(case)))) < quantile * error


def test_shared_candidates_of_another_weight_would_be_seen():
    """Both means over noise in full, not the one over all that were drawn."""

    def doubled(candidates: WeightedCandidates) -> WeightedCandidates:
        return dataclasses.replace(
            candidates, noise=candidates.noise * 2, shared_noise=candidates.shared_noise * 2
        )

    case = Case(4, NOISES["uniform"])
    mean, error = _mean_loss_of_shared(SHARED[2], case, doubled)
    assert abs(mean - float(case.paper_expectation(some_table(case)))) > 10 * error


def test_each_sum_lowers_the_variance():
    case = Case(4, NOISES["uniform"])
    errors = [_mean_loss(ObjectiveConfig(form), case, 20_000)[1] for form in FORMS_BY_NOISE]
    assert errors[0] > errors[1] > errors[2]


FORMS_BY_NOISE = ("observed", "summed", "marginal")


def _fault(candidates: WeightedCandidates, name: str, case: Case) -> WeightedCandidates:
    late = CHAIN.noise_rate[case.time + 1].float()
    minus_log_pi = -case.pi.log().float()
    offset, signal, noise = candidates.offset, candidates.signal, candidates.noise
    if name == "label flipped":
        signal, noise = noise, signal
    elif name == "sign of the offset":
        offset = -offset
    elif name == "offset one step late":
        offset = torch.full_like(offset, float(torch.log1p(-late) - late.log()))
    elif name == "-log pi twice":
        offset = offset + minus_log_pi.max()
    elif name == "alpha for 1 - alpha":
        config = ObjectiveConfig("marginal")
        visits = case.visits()
        visits = Visits(
            visits.sample_ids, visits.data, visits.current, 1 - visits.keep_prob, visits.noise_rate
        )
        return weighted_candidates(config, visits, VOCAB, seed=3, step=1, noise=case.noise)
    elif name == "data for current token":
        config = ObjectiveConfig("summed")
        visits = case.visits()
        visits = Visits(visits.sample_ids, visits.data, visits.data, visits.keep_prob, visits.noise_rate)
        return weighted_candidates(config, visits, VOCAB, seed=3, step=1, noise=case.noise)
    return WeightedCandidates(candidates.tokens, signal, noise, offset)


FAULTS = [
    "label flipped",
    "sign of the offset",
    "offset one step late",
    "-log pi twice",
    "alpha for 1 - alpha",
    "data for current token",
]


@pytest.mark.parametrize("check", [check_expectation, check_minimiser])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("fault", FAULTS)
def test_checks_notice(fault, noise, check):
    case = Case(4, NOISES[noise])
    faulty = _fault(case.candidates(ObjectiveConfig("marginal")), fault, case)
    with pytest.raises(AssertionError):
        check(case, faulty)


def train_table(case: Case, config: ObjectiveConfig, faulty=None) -> torch.Tensor:
    """A table g [contexts, V] trained on samples drawn afresh at every step."""
    g = torch.zeros(case.contexts, VOCAB, requires_grad=True)
    optimizer = torch.optim.Adam([g], lr=0.05)
    average = torch.zeros(case.contexts, VOCAB)
    steps, averaged, batch = 400, 200, 4096
    generator = torch.Generator().manual_seed(8)
    for step in range(steps):
        index = torch.multinomial(case.probs, batch, replacement=True, generator=generator)
        visits = Visits(
            sample_ids=torch.arange(batch),
            data=case.data[index, None],
            current=case.current[index, None],
            keep_prob=case.alpha.expand(batch, 1),
            noise_rate=case.rate.expand(batch, 1),
        )
        candidates = weighted_candidates(config, visits, VOCAB, seed=9, step=step, noise=case.noise)
        candidates = candidates if faulty is None else _fault(candidates, faulty, case)
        loss = loss_from_logits(g[case.context[index]], candidates, case.noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - averaged:
            average += g.detach() / averaged
    return average


def check_table(case: Case, g: torch.Tensor) -> None:
    """exp g, not normalised, is the true conditional in every context."""
    gap = (g.exp() - case.true_logits().exp()).abs().max()
    assert gap < 0.05, f"exp g off by {gap:.3f}"


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig("observed"),
        ObjectiveConfig("marginal", candidates=2, noise_ratio=3.0),
        ObjectiveConfig("marginal", noise_ratio=30.0),
    ],
    ids=["paper", "drawn candidates", "all candidates"],
)
def test_a_trained_table_reaches_the_true_conditionals(config):
    case = Case(4, NOISES["skewed"])
    check_table(case, train_table(case, config))


@pytest.mark.parametrize("fault", ["label flipped", "sign of the offset", "offset one step late"])
def test_a_faulty_table_does_not(fault):
    case = Case(4, NOISES["skewed"])
    with pytest.raises(AssertionError, match="exp g off"):
        check_table(case, train_table(case, ObjectiveConfig("observed"), faulty=fault))
