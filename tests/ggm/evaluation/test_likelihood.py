import dataclasses
import math

import pytest
import torch

from ggm import (
    GGM,
    ChainConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    ObjectiveConfig,
    TrainingConfig,
    train,
)
from ggm.data.digits import load_digits
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.likelihood import chain_bound, likelihood

LENGTH, VOCAB = 6, 5
NETWORKS = {
    "masked": MaskedConfig(width=16, depth=1, heads=2),
    "hollow": HollowConfig(width=16, depth=1, heads=2),
}


def model_of(network: str = "hollow", moved: bool = True, **options) -> GGM:
    torch.manual_seed(1)
    chain = ChainConfig(LENGTH, sweeps=3)
    model = GGM(GGMConfig(VOCAB, chain, NETWORKS[network], ObjectiveConfig(noise_ratio=3.0), **options))
    with torch.no_grad():  # heads start at 0, where all tokens are alike
        for parameter in model.parameters():
            parameter.add_(0.3 * moved * torch.randn(parameter.shape))
    return model


def data(count: int = 200) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count, LENGTH), generator=torch.Generator().manual_seed(2))


def test_a_new_network_knows_nothing_but_the_noise():
    """A head of zeros is uniform: each step's term is that of m = 1 / V, and the sum exactly L log V."""
    model = model_of(moved=False)
    with torch.no_grad():
        model.backbone.head_weight.zero_()
        model.backbone.head_bias.zero_()
    found = likelihood(model, data(), LikelihoodConfig(times=10**6))
    assert found["nats_per_token"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert found["bits_per_token"] == pytest.approx(math.log2(VOCAB), rel=1e-6)
    assert found["perplexity"] == pytest.approx(VOCAB, rel=1e-6)


@pytest.mark.parametrize("sites", [1, 4])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("noise", [None, (0.1, 0.2, 0.3, 0.2, 0.2)])
def test_few_times_agree_with_all(network, sites, noise):
    model = model_of(network, noise_probs=noise)
    every, few = (
        likelihood(model, data(600), LikelihoodConfig(times=times, sites_per_step=sites))
        for times in (10**6, 3)
    )
    error = math.hypot(every["standard_error"], few["standard_error"])
    assert abs(every["nats_per_token"] - few["nats_per_token"]) < 5 * error
    assert every["nats_per_token"] != few["nats_per_token"]


def test_a_sequence_does_not_depend_on_its_batch():
    model, tokens = model_of(), data(7)
    together, apart = (likelihood(model, tokens, LikelihoodConfig(times=4, batch=batch)) for batch in (7, 2))
    assert together == pytest.approx(apart, rel=1e-6)
    config = LikelihoodConfig(times=4)
    ids = torch.tensor([5, 900, 2])

    def bounds(rows: list[int]) -> torch.Tensor:
        given = model.conditionals()
        return chain_bound(given, model.chain, tokens[rows], config, vocab_size=VOCAB, sample_ids=ids[rows])

    assert torch.allclose(bounds([0, 1, 2])[1:], bounds([1, 2]), rtol=1e-6)


def test_frozen_positions_that_differ_by_row_are_those_of_each_row_alone():
    model, tokens = model_of(), data(5)
    frozen = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.5
    config, ids = LikelihoodConfig(times=10**6), torch.arange(5)

    def bound(rows: slice) -> torch.Tensor:
        options = {"vocab_size": VOCAB, "frozen": frozen[rows], "sample_ids": ids[rows]}
        return chain_bound(model.conditionals(frozen[rows]), model.chain, tokens[rows], config, **options)

    alone = torch.cat([bound(slice(i, i + 1)) for i in range(5)])
    # All times of the one with the most visits: those of fewer are looked at in the same places again.
    most = frozen.logical_not().sum(1).argmax()
    assert torch.allclose(bound(slice(0, 5))[most], alone[most], rtol=1e-6)
    assert (alone > 0.0).sum() > 1
    everything = torch.ones(2, LENGTH, dtype=torch.bool)
    nothing = chain_bound(
        model.conditionals(everything), model.chain, tokens[:2], config, vocab_size=VOCAB, frozen=everything
    )
    assert torch.equal(nothing, torch.zeros(2, dtype=torch.float64))


def test_worse_weights_are_worse():
    model, tokens = model_of(), data(300)
    config = LikelihoodConfig(times=6)
    before = likelihood(model, tokens, config)["nats_per_token"]
    with torch.no_grad():
        model.backbone.head_weight.mul_(3.0)
    assert likelihood(model, tokens, config)["nats_per_token"] > before


def test_config_names_its_fields():
    for name in ("times", "sites_per_step", "batch"):
        with pytest.raises(ValueError, match=f"{name}: got 0; allowed: 1 or more"):
            dataclasses.replace(LikelihoodConfig(), **{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["state", "data"])
def test_the_bound_of_a_trained_model_does_not_depend_on_the_times(predicts):
    """64 of the 4,096 times of its chain, of many draws, and all of them: within the error of paired differences."""
    digits = load_digits(4, 360)
    torch.manual_seed(0)
    backbone = HollowConfig(width=16, depth=1, mixing=1, heads=2)
    objective = ObjectiveConfig("cross_entropy")
    chain = ChainConfig(64, sweeps=64)
    config = GGMConfig(4, chain, backbone, objective, masked_counts=(64,), predicts=predicts)
    training = TrainingConfig(steps=400, batch_size=32, learning_rate=5e-3)
    model = train(GGM(config), digits.train, training).model
    tokens = digits.held_out[:48]

    def bound(times: int, seed: int) -> torch.Tensor:
        config = LikelihoodConfig(times=times, seed=seed)
        return chain_bound(model.conditionals(), model.chain, tokens, config, vocab_size=4) / 64

    every = bound(4096, 0)
    few = torch.stack([bound(64, seed) for seed in range(1, 33)]).mean(dim=0)
    gap = few - every
    error = float(gap.std() / len(gap) ** 0.5)
    assert abs(float(gap.mean())) < 4 * error < 0.1
    assert 0.2 < float(every.mean()) < 1.2
