"""The likelihood bound is tight with exact conditionals, above under every planted fault, and unbiased."""

import math

import pytest
import torch
from enumerable import LAWS, Law, law_at, noise_law, skewed, uneven_chain, uniform

from ggm.chain import Chain
from ggm.evaluation import bound as formula
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.denoiser_likelihood import denoiser_bound
from ggm.evaluation.likelihood import chain_bound

EVERY = 10**6  # more times than any chain here has steps: each is looked at


class Exact:
    """Exact conditionals of the law of X_t, at times and positions of each sequence; `shift` is a planted fault."""

    def __init__(self, data: Law, chain: Chain, pi: torch.Tensor, shift: int = 0, temperature: float = 1.0):
        self.laws = [law_at(data, chain, t, pi) for t in range(chain.steps + 1)]
        self.shift, self.temperature = shift, temperature

    def __call__(self, tokens, positions, times):
        out = torch.empty(*positions.shape, self.laws[0].vocab_size, dtype=torch.float64)
        at = times[:, None] * tokens.shape[1] + positions
        for value in at.unique().tolist():
            time, position = divmod(value, tokens.shape[1])
            law = self.laws[min(max(time + self.shift, 0), len(self.laws) - 1)]
            rows, places = (at == value).nonzero(as_tuple=True)
            out[rows, places] = law.log_conditional(tokens[rows], position)
        return out / self.temperature


def entropy(data: Law) -> float:
    return -float(torch.special.xlogy(data.probs, data.probs).sum())


def prior_gap(data: Law, chain: Chain, pi: torch.Tensor) -> float:
    """KL(p_T || pi^L)."""
    last = law_at(data, chain, chain.steps, pi).probs
    product = torch.ones(())
    for _ in range(data.length):
        product = product[..., None] * pi
    return float((last * (last / product).log()).sum())


def short_chain(length: int, sweeps: int = 2) -> Chain:
    """A chain that stops far from pure noise: the prior's divergence is not 0."""
    rates = 0.2 + 0.3 * torch.rand(
        sweeps * length, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    return Chain(torch.stack([torch.arange(length), torch.arange(length).flip(0)])[:sweeps], rates)


def exact_mean(data: Law, conditionals, chain: Chain, pi: torch.Tensor) -> float:
    """The bound's mean over data, noise and all times, by enumeration of every state of X_{t+1}."""
    noise = formula.Noise(noise_law(pi), len(pi))
    states, weights = data.states(), data.probs.flatten()
    count = len(states)  # rows are pairs of data and a state of X_{t+1}
    x0, x = states.repeat_interleave(count, 0), states.repeat(count, 1)
    last = chain.keep_prob(torch.full((count,), chain.steps))
    total = weights @ formula.prior_divergence(last, states, noise).sum(1)
    for t in range(chain.steps):
        i, eps = int(chain.positions[t]), chain.noise_rate[t]
        alpha = chain.keep_prob(torch.tensor([t]))[0]
        after = alpha.clone()
        after[i] *= 1.0 - eps
        weight = weights.repeat_interleave(count) * ((x0 == x) * after + (1.0 - after) * pi[x]).prod(1)
        log_m = conditionals(states, torch.full((count, 1), i), torch.full((count,), t))
        log_m = log_m[:, 0].double().log_softmax(1).repeat(count, 1)
        site = formula.Site(x0[:, i], alpha[i].expand(count**2), eps.expand(count**2))
        log_data = log_m.gather(1, x0[:, i : i + 1])[:, 0]
        divergence = formula.divergence_from_data(site, formula.LogModel(log_data, log_m @ pi), noise)
        b = x[:, i : i + 1]
        total += weight @ formula.step_bound(site, b, log_m.gather(1, b), divergence, noise)[:, 0]
    return float(total)


@pytest.mark.parametrize("noise", [uniform, skewed])
@pytest.mark.parametrize("chain", [short_chain, uneven_chain])
@pytest.mark.parametrize("name", ["potts", "random"])
def test_the_bound_is_entropy_plus_the_priors_divergence(name, chain, noise):
    data = LAWS[name](length=3)
    pi, steps = noise(data.vocab_size), chain(3)
    found = exact_mean(data, Exact(data, steps, pi), steps, pi)
    assert found == pytest.approx(entropy(data) + prior_gap(data, steps, pi), rel=1e-10)


@pytest.mark.parametrize("sweeps", [2, 40])
def test_it_is_tight_for_chains_of_any_length(sweeps):
    data, pi = LAWS["ising"](length=2), uniform(2)
    rates = torch.full((sweeps * 2,), 1.0 - 0.01 ** (1.0 / sweeps), dtype=torch.float64)
    chain = Chain(torch.arange(2).expand(sweeps, -1), rates)
    found = exact_mean(data, Exact(data, chain, pi), chain, pi)
    assert found == pytest.approx(entropy(data) + prior_gap(data, chain, pi), rel=1e-10)


FAULTS = {
    "one step late": {"shift": 1},
    "one step early": {"shift": -1},
    "a sweep late": {"shift": 3},
    "temperature": {"temperature": 0.9},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_raises_it(fault):
    data, pi, chain = LAWS["random"](length=3), skewed(5), uneven_chain(3)
    exact = entropy(data) + prior_gap(data, chain, pi)
    assert exact_mean(data, Exact(data, chain, pi, **FAULTS[fault]), chain, pi) > exact + 1e-4


def test_conditionals_that_see_the_token_of_x_t_cannot_get_below():
    """A 'network' that puts everything on the data token of one sequence is punished elsewhere."""
    data, pi, chain = LAWS["potts"](length=3), uniform(3), uneven_chain(3)

    def sure(tokens, positions, times):
        return torch.tensor([6.0, 0.0, 0.0], dtype=torch.float64).expand(*positions.shape, 3)

    assert exact_mean(data, sure, chain, pi) > entropy(data)


def estimates(
    data: Law, conditionals, chain: Chain, pi: torch.Tensor, count: int, times: int = EVERY, **options
):
    """Estimates for `count` sequences of the data distribution."""
    config = LikelihoodConfig(times=times, seed=3, batch=512)
    return chain_bound(
        conditionals,
        chain,
        data.sample(count, seed=5),
        config,
        vocab_size=data.vocab_size,
        noise=noise_law(pi),
        **options,
    )


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """Five standard errors: a false alarm in two million."""
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean()) - expected) < 5 * error, (float(values.mean()), expected, error)


@pytest.mark.parametrize("noise", [uniform, skewed])
@pytest.mark.parametrize("times", [2, EVERY])
def test_estimates_are_unbiased(times, noise):
    data, chain = LAWS["potts"](length=3), short_chain(3)
    pi = noise(3)
    values = estimates(data, Exact(data, chain, pi), chain, pi, 3000, times)
    assert_mean(values, entropy(data) + prior_gap(data, chain, pi))


def test_long_vocabularies_give_the_same_from_draws(monkeypatch):
    """Products in place of all logits, draws in place of the sum over the vocabulary."""
    from ggm.evaluation import likelihood, log_conditionals
    from ggm.sampling.steps import LinearLogits

    data, pi, chain = LAWS["random"](length=3), skewed(5), short_chain(3)
    exact = Exact(data, chain, pi)

    def factors(tokens, positions, times):
        return LinearLogits(exact(tokens, positions, times).float(), torch.eye(5), torch.zeros(5))

    for module in (likelihood, log_conditionals):
        monkeypatch.setattr(module, "SUMMED_VOCABULARY", 4)
    values = estimates(data, factors, chain, pi, 3000)
    assert_mean(values, entropy(data) + prior_gap(data, chain, pi))
    assert float(values.std()) > 0.0


def test_frozen_positions_give_the_conditional_entropy():
    data, pi, chain = LAWS["potts"](length=3), skewed(3), uneven_chain(3)
    given = data.sample(3000, seed=5)
    frozen = torch.tensor([True, False, False]).expand(len(given), -1)
    marginal = data.probs.sum((1, 2))
    first = -float(torch.special.xlogy(marginal, marginal).sum())

    class Given(Exact):
        """Position 0 is clean at all times."""

        def __init__(self):
            super().__init__(data, chain, pi)
            self.laws = []
            for t in range(chain.steps + 1):
                keep = chain.keep_prob(torch.tensor([t]))[0].tolist()
                self.laws.append(data.noised([1.0, *keep[1:]], pi))

    values = estimates(data, Given(), chain, pi, len(given), frozen=frozen)
    assert_mean(values, entropy(data) - first)


class ExactDenoiser:
    """log P(X_0,i = . | X_n) by enumeration, its own position in sight; `absorbing` with mask V."""

    def __init__(self, data: Law, keep_prob: torch.Tensor, pi: torch.Tensor, temperature: float = 1.0):
        self.data, self.keep_prob, self.pi, self.temperature = data, keep_prob, pi, temperature

    def __call__(self, tokens, steps):
        states = self.data.states()
        out = torch.empty(*tokens.shape, self.data.vocab_size, dtype=torch.float64)
        for row, (x, n) in enumerate(zip(tokens, steps, strict=True)):
            keep = self.keep_prob[n]
            likely = (keep * (states == x) + (1 - keep) * self.pi[x]).prod(1) * self.data.probs.flatten()
            for i in range(self.data.length):
                of_token = torch.zeros(self.data.vocab_size, dtype=torch.float64)
                out[row, i] = of_token.index_add(0, states[:, i], likely).log()
        return out / self.temperature


def assert_above(values: torch.Tensor, others: torch.Tensor) -> None:
    """The mean of paired numbers, of the same data and noise, is larger by five standard errors."""
    excess = values - others
    assert float(excess.mean()) > 5 * float(excess.std() / math.sqrt(len(excess)))


def test_absorbing_denoiser_is_tight_in_the_limit_of_many_steps():
    """One token unmasked at a time has no bias; 400 steps leave next to none."""
    data = LAWS["potts"](length=3)
    keep = 1.0 - torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    pi = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    given, config = data.sample(1000, seed=5), LikelihoodConfig(times=20, seed=1, batch=500)

    def found(temperature: float) -> torch.Tensor:
        denoiser = ExactDenoiser(data, keep, pi, temperature)
        return denoiser_bound(denoiser, keep, given, config, vocab_size=3, mask_id=3)

    exact = found(1.0)
    assert_mean(exact, entropy(data))
    assert_above(found(0.6), exact)


def test_absorbing_steps_are_the_weighted_cross_entropy():
    """Each step's term is (alpha_s - alpha_t) / (1 - alpha_t) times -log p0 at masked positions: MDLM's loss."""
    data = LAWS["random"](length=3)
    keep = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = []

    def denoiser(tokens, steps):
        seen.append((tokens.clone(), steps.clone()))
        return logits.expand(len(tokens), -1, -1)

    given = data.sample(50, seed=5)
    config = LikelihoodConfig(times=2, seed=1, batch=64)
    found = denoiser_bound(denoiser, keep, given, config, vocab_size=5, mask_id=5)
    cross = -logits.log_softmax(1).expand(50, -1, -1).gather(2, given[..., None]).squeeze(2)
    expected = torch.zeros(50, dtype=torch.float64)
    for tokens, steps in seen:
        weight = (keep[steps - 1] - keep[steps]) / (1.0 - keep[steps])
        expected += (weight[:, None] * cross * (tokens == 5)).sum(1)
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("noise", [uniform, skewed])
def test_uniform_denoiser_is_above_the_entropy_and_near_it(noise):
    """The bias of changing all positions in one step falls with their number."""
    data, pi = LAWS["potts"](length=2), noise(3)

    def found(
        steps: int, temperature: float = 1.0, predicts: str = "posterior", count: int = 500
    ) -> torch.Tensor:
        given = data.sample(count, seed=5)
        keep = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        denoiser = ExactDenoiser(data, keep, pi, temperature)
        config = LikelihoodConfig(times=20, seed=1, batch=500)
        law, options = noise_law(pi), {"vocab_size": 3, "predicts": predicts}
        return denoiser_bound(denoiser, keep, given, config, noise=law, **options)

    exact, few, many = entropy(data), found(3, count=2000), found(200)
    error = float(many.std() / math.sqrt(len(many)))
    assert float(few.mean()) > exact + 5 * float(few.std() / math.sqrt(len(few)))
    assert abs(float(many.mean()) - exact) < 0.02 + 5 * error
    assert_above(found(200, 0.4), many)
    # The distribution of x0 given its own noisy token, too, is no leave-one-out one.
    assert_above(found(200, predicts="leave_one_out"), many)


def test_what_is_wrong_is_told():
    data = LAWS["potts"](length=2)
    arguments = (lambda x, n: None, torch.tensor([1.0, 0.0]), data.sample(2, seed=1), LikelihoodConfig())
    with pytest.raises(ValueError, match="noise, mask_id"):
        denoiser_bound(*arguments, vocab_size=3, noise=noise_law(skewed(3)), mask_id=3)
    with pytest.raises(ValueError, match="keep_prob"):
        denoiser_bound(arguments[0], torch.tensor([0.9, 0.0]), *arguments[2:], vocab_size=3)
    for width, mask in ((4, 3), (4, 2), (4, None), (2, 3)):

        def wide(tokens, steps, width=width):
            return torch.zeros(*tokens.shape, width)

        told = rf"denoiser: got logits of shape \(2, 2, {width}\); allowed: \(2, 2, 3\)"
        with pytest.raises(ValueError, match=told):
            denoiser_bound(wide, *arguments[1:], vocab_size=3, mask_id=mask)
    with pytest.raises(ValueError, match="times: got 0; allowed: 1 or more"):
        LikelihoodConfig(times=0)
