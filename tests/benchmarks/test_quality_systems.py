"""Every system of the bench, trained on a law small enough to enumerate, reaches it within the sampling error."""

import functools

import pytest
import torch
from enumerable import Law, assert_follows, potts_ring, random_joint

from benchmarks.quality import mdlm, sedd, uniform
from benchmarks.quality.system import Request, Shape
from benchmarks.quality.systems import SYSTEMS, make_system
from benchmarks.quality.training import fit
from ggm.backbones.layers import TransformerConfig
from ggm.training.config import TrainingConfig

JOINT = random_joint(length=2, vocab_size=3, spread=1.0)
RING = potts_ring(length=3, vocab_size=3)
RIVALS = [name for name in SYSTEMS if not name.startswith("ggm")]
COUNT = 2000
# Confidence order takes the likeliest draw first: which law it leads to, nobody has promised.
BIASED = {("mdlm", "confidence")}
# With the log-linear schedule of absorbing noise a step of Euler is the analytic one.
TWINS = {("sedd-absorbing", "euler")}


def trained(
    name: str,
    law: Law,
    steps: int,
    width: int = 24,
    depth: int = 1,
    learning_rate: float = 1e-2,
    ema_decay: float = 0.95,
):
    torch.manual_seed(0)
    size = TransformerConfig(width=width, depth=depth, heads=2, mlp_ratio=2.0)
    system = make_system(name, Shape(law.length, law.vocab_size, size))
    config = TrainingConfig(steps=steps, batch_size=128, learning_rate=learning_rate, ema_decay=ema_decay)
    return fit(system, law.sample(50_000, seed=1), config).system


@functools.cache
def small(name: str):
    return trained(name, JOINT, steps=300, width=16)


def samples(system, sampler: str, evaluations: int = 16, count: int = COUNT, **options) -> torch.Tensor:
    steps = system.steps_near(sampler, evaluations)
    return system.sample(Request(count, sampler, steps, seed=3, **options)).tokens


# Scores, and means under uniform noise, take longer to learn than what follows a mask or the tokens before.
QUICK = ["mdlm", "autoregressive"]


@pytest.mark.parametrize("name", QUICK)
def test_rivals_reach_an_enumerable_law(name):
    system = small(name)
    for sampler in system.samplers:
        if (name, sampler) not in BIASED | TWINS:
            assert_follows(samples(system, sampler), JOINT)


@pytest.mark.parametrize("name", QUICK)
def test_another_temperature_is_noticed(name):
    system = small(name)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(system, system.samplers[0], temperature=0.5), JOINT)


def rolled(loss, index: int):
    """A loss whose data are those of the neighbouring positions."""

    def faulty(*arguments):
        arguments = list(arguments)
        arguments[index] = arguments[index].roll(1, dims=0)
        return loss(*arguments)

    return faulty


@pytest.mark.parametrize(
    ("name", "module", "loss"),
    [
        ("mdlm", mdlm, "masked_loss"),
        pytest.param("sedd-absorbing", sedd, "absorbing_score_entropy", marks=pytest.mark.slow),
        pytest.param("sedd-uniform", sedd, "uniform_score_entropy", marks=pytest.mark.slow),
        pytest.param("uniform", uniform, "uniform_score_entropy", marks=pytest.mark.slow),
    ],
)
def test_a_loss_of_other_data_is_noticed(monkeypatch, name, module, loss):
    monkeypatch.setattr(module, loss, rolled(getattr(module, loss), 2))
    system = trained(name, JOINT, steps=40)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(system, system.samplers[0]), JOINT)


@pytest.mark.parametrize("name", SYSTEMS)
def test_bounds_lie_above_the_entropy_and_near_it(name):
    system = small(name) if name in QUICK else trained(name, JOINT, steps=40, width=16)
    data = JOINT.sample(1000, seed=4)
    nats = system.bound(data, times=8, seed=0)
    entropy = -float(torch.special.xlogy(JOINT.probs, JOINT.probs).sum())
    assert nats.dtype == torch.float64 and nats.shape == (1000,)
    error = float(nats.std()) / 1000**0.5
    assert entropy - 5 * error < float(nats.mean()) < entropy + 0.15 + 5 * error


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_given_stays(name):
    torch.manual_seed(0)
    size = TransformerConfig(width=8, depth=1, heads=2)
    system = make_system(name, Shape(8, 5, size, given_share=0.5))
    tokens = torch.arange(8).remainder(5).expand(6, -1).contiguous()
    given = (torch.arange(48).view(6, 8) % 3) == 0
    for sampler in system.samplers:
        drawn = samples(system, sampler, 16, count=6, tokens=tokens, given=given)
        assert torch.equal(drawn[given], tokens[given])
        assert int(drawn.min()) >= 0 and int(drawn.max()) < 5


def test_networks_are_of_one_size():
    size = TransformerConfig(width=64, depth=5, heads=4, mlp_ratio=2.0)
    counts = {
        name: sum(p.numel() for p in make_system(name, Shape(64, 30, size)).parameters()) for name in SYSTEMS
    }
    assert max(counts.values()) < 1.2 * min(counts.values()), counts


class ExactConditionals(torch.nn.Module):
    """In place of a network: of each token the distribution given those that are not masked."""

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))  # tells the device
        self.sequences = torch.cartesian_prod(*[torch.arange(law.vocab_size)] * law.length)
        self.probs, self.shape = law.probs.flatten(), (law.length, law.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        agrees = (tokens[:, None] == self.sequences) | (tokens[:, None] == self.shape[1])
        probs = agrees.all(dim=-1) * self.probs
        is_token = torch.nn.functional.one_hot(self.sequences, self.shape[1]).double()
        return torch.einsum("bs,slv->blv", probs, is_token).log().float()


@pytest.mark.parametrize("sampler", ["ancestral", "remasking"])
def test_mdlm_with_exact_conditionals_is_exact_in_many_steps(sampler):
    system = make_system("mdlm", Shape(RING.length, RING.vocab_size, TransformerConfig(width=8, heads=2)))
    system.network = ExactConditionals(RING)
    assert_follows(samples(system, sampler, 300, count=8000), RING)
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(system, sampler, 4, count=8000), RING)


def test_unchanged_sequences_cost_mdlm_nothing():
    system = small("mdlm")
    drawn = system.sample(Request(50, "ancestral", 200, seed=3))
    assert drawn.evaluations <= JOINT.length + 1  # a token a step at most changes the network's input


@functools.cache
def large(name: str):
    # Long: a sampler that masks again keeps asking the network, and adds up what it has got wrong.
    return trained(name, RING, steps=3000, width=32, depth=2, learning_rate=3e-3, ema_decay=0.998)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_reach_a_larger_law(name):
    system = large(name)
    for sampler in system.samplers:
        if (name, sampler) not in BIASED | TWINS:
            assert_follows(samples(system, sampler, 96, count=8000), RING)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_too_few_steps_are_noticed(name):
    """Tokens that are drawn together are drawn as if they were independent."""
    system = large(name)
    if name == "autoregressive":
        pytest.skip("one token a step whatever is asked for")
    with pytest.raises(AssertionError, match="total variation"):
        assert_follows(samples(system, system.samplers[0], 2, count=8000), RING)
