"""Any-order samples of exact predictions: the data law in a random order, and what enumeration says in all others."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from enumerable import LAWS, Law, assert_follows, ising_chain, noise_law, skewed, uneven_chain, uniform
from exact_data import posterior_table

from ggm.chain import Chain
from ggm.sampling import any_order
from ggm.sampling.any_order import denoise_in_any_order
from ggm.sampling.config import ReDenoise, SamplingConfig
from ggm.sampling.steps import DataPrediction
from ggm.sampling.stepwise import initial_tokens
from ggm_kernels import commit

COUNT = 12_000
SEES = {"leave-one-out": False, "denoiser": True}
NOISES = [("potts", uniform), ("random", skewed)]
SETTINGS = {
    "one pass": {},
    "ReDenoise": {"redenoise": ReDenoise(sweeps=1)},
    "ReDenoise, keep or replace": {"keep_or_replace": True, "redenoise": ReDenoise(sweeps=2)},
}


@dataclass(frozen=True)
class Exact:
    """P(X_{0,i} = . | data where given, X_t elsewhere), of a network that sees its own token or does not.

    Planted faults: `late` takes the keep probabilities of so many steps before, `blind` those of X_t for what is
    given, too, and `own` counts what a token tells of its own position so many times more than it should.
    """

    law: Law
    chain: Chain
    pi: torch.Tensor
    sees_own: bool
    keep_or_replace: bool
    late: int = 0
    blind: bool = False
    own: int = 0

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor, given: torch.Tensor) -> DataPrediction:
        told = torch.zeros_like(given) if self.blind else given
        keep = self.chain.keep_prob(times - self.late).masked_fill(told, 1.0)
        logits = torch.empty(*tokens.shape, self.law.vocab_size)
        for row in keep.unique(dim=0):
            of = (keep == row).all(dim=1)
            table = posterior_table(self.law, row, self.pi, self.sees_own)
            logits[of] = table[self.law.index(tokens[of])].float()
        pi = self.pi[tokens]
        told_by_own = ((keep + (1 - keep) * pi) / ((1 - keep) * pi)).log()  # more than by another token
        times_counted = self.keep_or_replace + self.own - self.sees_own
        shift = times_counted * told_by_own if times_counted else None
        return DataPrediction(logits, torch.ones_like(keep), shift)


def samples(
    law: Law,
    pi: torch.Tensor,
    sees_own: bool,
    *,
    frozen: torch.Tensor | None = None,
    faults: dict | None = None,
    observe: Callable | None = None,
    **settings,
) -> torch.Tensor:
    chain, noise = uneven_chain(law.length), noise_law(pi)
    start = initial_tokens(torch.arange(COUNT), law.length, law.vocab_size, seed=71, noise=noise)
    if frozen is not None:
        start = torch.where(frozen, law.sample(COUNT, seed=72), start)
    config = SamplingConfig(**settings)
    exact = Exact(law, chain, pi, sees_own, config.keep_or_replace, **(faults or {}))
    options = {"seed": 73, "noise": noise, "vocab_size": law.vocab_size, "frozen": frozen, "observe": observe}
    return denoise_in_any_order(exact, chain, start, config, **options).tokens


def some_frozen(law: Law) -> torch.Tensor:
    """Other positions, and another number of them, from sequence to sequence; none in half of them."""
    generator = torch.Generator().manual_seed(3)
    share = 0.6 * torch.randint(2, (COUNT, 1), generator=generator)
    return torch.rand(COUNT, law.length, generator=generator) < share


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize(("name", "noise"), NOISES)
def test_a_random_order_of_single_sites_gives_the_data_law(name, noise, sees, settings):
    """Sampled or infilled: what is frozen differs from sequence to sequence, and in many nothing is."""
    law = LAWS[name]()
    frozen = some_frozen(law)
    drawn = samples(
        law, noise(law.vocab_size), SEES[sees], order="random", frozen=frozen, **SETTINGS[settings]
    )
    assert_follows(drawn, law)
    assert_follows(drawn[~frozen.any(dim=1)], law)


@pytest.mark.parametrize("sees", SEES)
def test_keep_or_replace_keeps_more_of_what_is_noised_again(sees):
    """Both leave the law as it is, so that it does not tell them apart."""
    law, unchanged = LAWS["random"](), {}
    for process in (False, True):
        passes = []
        settings = {"order": "random", "redenoise": ReDenoise(sweeps=1), "keep_or_replace": process}
        last = samples(
            law,
            skewed(5),
            SEES[sees],
            observe=lambda t, x, passes=passes: passes.append(x.clone()),
            **settings,
        )
        unchanged[process] = float((passes[law.length] == last).double().mean())
    assert unchanged[True] > unchanged[False] + 0.1


def enumerated(law: Law, order: str, sites: int, temperature: float = 1.0, threshold: float = 2.0) -> Law:
    """Law of one pass from pure noise: all sets of settled positions, and what may stand there, one after another."""
    found: dict[tuple, float] = {(None,) * law.length: 1.0}
    for step in range(math.ceil(law.length / sites)):
        following: dict[tuple, float] = {}
        for state, mass in found.items():
            tables = [conditional(law, state, i) for i in range(law.length)]
            left = [i for i, token in enumerate(state) if token is None]
            if not left:
                following[state] = following.get(state, 0.0) + mass
                continue
            count = math.ceil(len(left) / (math.ceil(law.length / sites) - step))
            for chosen, tokens, probability in choices(tables, left, count, order, temperature, threshold):
                after = list(state)
                for i, token in zip(chosen, tokens, strict=True):
                    after[i] = token
                following[tuple(after)] = following.get(tuple(after), 0.0) + mass * probability
        found = following
    probs = torch.zeros_like(law.probs)
    for state, mass in found.items():
        probs[state] = mass
    return Law(probs)


def choices(tables: list, left: list, count: int, order: str, temperature: float, threshold: float):
    """Positions settled in a step, tokens there, and the probability of both."""
    tempered = [table ** (1 / temperature) / (table ** (1 / temperature)).sum() for table in tables]
    if order == "random":
        sets = list(itertools.combinations(left, count))
        for chosen in sets:
            for tokens in itertools.product(range(len(tables[0])), repeat=count):
                each = [float(tempered[i][token]) for i, token in zip(chosen, tokens, strict=True)]
                yield chosen, tokens, math.prod(each) / len(sets)
        return
    for drawn in itertools.product(range(len(tables[0])), repeat=len(left)):
        token = dict(zip(left, drawn, strict=True))
        sure = {i: float(tables[i][token[i]]) for i in left}
        most = max(count, sum(probability >= threshold for probability in sure.values()))
        # Of equals the first: rounded, for sums of symmetric laws differ in their last digits.
        chosen = sorted(left, key=lambda i, sure=sure: -round(sure[i], 9))[:most]
        each = [float(tempered[i][token[i]]) for i in left]
        yield chosen, [token[i] for i in chosen], math.prod(each)


def conditional(law: Law, state: tuple, position: int) -> torch.Tensor:
    """P(X_i = . | what is settled), float64 [V]."""
    index = tuple(slice(None) if token is None or i == position else token for i, token in enumerate(state))
    probs = law.probs[index]
    place = sum(token is None or i == position for i, token in enumerate(state[:position]))
    others = [axis for axis in range(probs.dim()) if axis != place]
    probs = probs.sum(others) if others else probs
    return probs / probs.sum()


@pytest.mark.parametrize("sites", [1, 2, 3])
@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("sees", SEES)
def test_orders_give_what_enumeration_says(sees, order, sites):
    law = LAWS["random"]()  # no two tokens are equally likely
    drawn = samples(law, skewed(5), SEES[sees], order=order, sites_per_step=sites)
    assert_follows(drawn, enumerated(law, order, sites))


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_temperature_changes_what_is_drawn_and_not_what_is_confident(order):
    law, settings = LAWS["random"](), {"order": order, "sites_per_step": 2}
    cold = enumerated(law, order, 2, temperature=0.6)
    assert_follows(samples(law, skewed(5), True, temperature=0.6, **settings), cold)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(law, skewed(5), True, **settings), cold)


@pytest.mark.parametrize("sites", [1, 2])
def test_a_threshold_settles_more_at_once(sites):
    law, settings = LAWS["random"](), {"order": "confidence", "sites_per_step": sites}
    expected = enumerated(law, "confidence", sites, threshold=0.2)
    assert_follows(samples(law, skewed(5), False, confidence_threshold=0.2, **settings), expected)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(law, skewed(5), False, **settings), expected)


def test_without_temperature_the_likeliest_token_of_all_comes_first():
    """The second position is the surer one; taken in turn the first would be 0, which makes both 0."""
    law = Law(torch.tensor([[0.28, 0.27], [0.44, 0.01]], dtype=torch.float64))
    drawn = samples(law, uniform(2), False, order="confidence", temperature=0.0)
    assert (drawn == torch.tensor([1, 0])).all()


def test_confidence_is_not_the_data_law_and_enumeration_of_single_sites_is():
    law = LAWS["random"]()
    torch.testing.assert_close(enumerated(law, "random", 1).probs, law.probs, rtol=1e-9, atol=0.0)
    assert 0.5 * float((enumerated(law, "confidence", 1).probs - law.probs).abs().sum()) > 0.05
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(law, skewed(5), False, order="confidence"), law)


PAGE = Path(__file__).parents[2] / "docs" / "mathematics.md"
ROWS = {
    "Ising chain, L = 4": lambda: ising_chain(4),
    "Potts ring, L = 4": LAWS["potts"],
    "random joint, L = 3": LAWS["random"],
}


@pytest.mark.parametrize("title", ROWS)
def test_the_page_has_the_distances_of_the_enumeration(title):
    """Columns: the random order by one and by two sites, then the confident one."""
    section = PAGE.read_text().partition("### Any order")[2].partition("###")[0]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {title} |")]
    law = ROWS[title]()
    told = [float(cell) for cell in row.split("|")[2:-1]]
    settings = itertools.product(("random", "confidence"), (1, 2))
    found = [0.5 * float((enumerated(law, *of).probs - law.probs).abs().sum()) for of in settings]
    assert told == pytest.approx(found, abs=6e-4)


def least_confident(tokens, proposal, score, **options):
    return commit(tokens, proposal, -score, **options)


FAULTS = {
    "not told what is given": {"blind": True},
    "a sweep early": {"late": 3},
    "own token taken out of what does not have it": {"own": -1},
    "own token twice": {"own": 1, "keep_or_replace": True},
}


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, sees):
    law, faults = LAWS["random"](), dict(FAULTS[fault])
    settings = {"redenoise": ReDenoise(sweeps=1), "keep_or_replace": faults.pop("keep_or_replace", False)}
    drawn = samples(law, skewed(5), SEES[sees], order="random", faults=faults, **settings)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(drawn, law)


def test_the_least_confident_first_is_noticed(monkeypatch):
    law = LAWS["random"]()
    monkeypatch.setattr(any_order, "commit", least_confident)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(law, skewed(5), False, order="confidence"), enumerated(law, "confidence", 1))
