"""Networks that predict the data: what is configured, saved and refused; the denoiser's own token."""

import dataclasses

import pytest
import torch

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    ObjectiveConfig,
    SamplingConfig,
)
from ggm.commands.cli import main
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.held_out import HeldOutConfig, held_out
from ggm.evaluation.likelihood import likelihood
from ggm.sampling.sampler import keep_prob_seen

LENGTH, VOCAB = 6, 5
CHAIN = ChainConfig(LENGTH, sweeps=3)
NETWORKS = {
    "hollow": HollowConfig(width=16, depth=1, heads=2),
    "denoiser": DenoiserConfig(width=16, depth=2, heads=2, positions="both", grid=(2, 3)),
}


def model_of(network: str, **options) -> GGM:
    torch.manual_seed(0)
    options = {"objective": ObjectiveConfig(noise_ratio=3.0), "masked_counts": (LENGTH,), **options}
    model = GGM(GGMConfig(VOCAB, CHAIN, NETWORKS[network], predicts="data", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_model_draws_the_same_and_info_tells_what_it_predicts(network, tmp_path, capsys):
    model = model_of(network)
    model.save_pretrained(tmp_path)
    again = GGM.from_pretrained(tmp_path)
    assert again.config == model.config
    config = SamplingConfig(event_driven=True, keep_or_replace=True)
    assert torch.equal(again.sample(4, config, seed=1).tokens, model.sample(4, config, seed=1).tokens)
    assert main(["info", str(tmp_path)]) == 0
    assert f"network     {network}, predicts data, " in capsys.readouterr().out


def test_configurations_without_the_field_predict_the_state():
    values = GGMConfig(VOCAB, CHAIN).to_dict()
    del values["predicts"]
    assert GGMConfig.from_dict(values).predicts == "state"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"predicts": "noise"}, "predicts: got 'noise'; allowed: state, data"),
        ({"backbone": DenoiserConfig()}, "predicts: got 'state' with a denoiser; allowed: data"),
        (
            {"predicts": "data", "objective": ObjectiveConfig("observed")},
            "objective.form: got 'observed' with predicts: data; allowed: marginal, cross_entropy",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        GGMConfig(VOCAB, CHAIN, **options)


@pytest.mark.parametrize("sites", [1, 2, 4])
@pytest.mark.parametrize("time", [0, 5, 12])
def test_a_denoiser_is_told_the_noise_of_the_tokens_that_it_sees(time, sites):
    """Those of X_{t + K}, for the group of K visits from t."""
    chain, times = model_of("denoiser").chain, torch.tensor([time])
    sites = min(sites, LENGTH - time % LENGTH)
    positions = chain.positions[time : time + sites][None]
    assert torch.equal(keep_prob_seen(chain, positions, times), chain.keep_prob(times + sites))


def test_the_data_token_is_the_only_signal_whatever_the_noise():
    """The losses of one prediction at two keep probabilities of X_t are the same; predicting the state, not."""
    tokens, times = torch.arange(LENGTH)[None] % VOCAB, torch.tensor([4])
    for predicts in ("data", "state"):
        model = model_of("hollow")
        steps = torch.arange(LENGTH)[None]
        found = model.predictions(tokens, times, steps, seed=0, step=0, sample_ids=torch.arange(1))
        found = dataclasses.replace(found, predicts=predicts)
        other = dataclasses.replace(
            found, visits=dataclasses.replace(found.visits, keep_prob=0.3 * found.visits.keep_prob)
        )
        for form in ("marginal", "cross_entropy"):
            losses = [p.losses(ObjectiveConfig(form)) for p in (found, other)]
            assert torch.equal(*losses) is (predicts == "data")


@pytest.mark.parametrize("network", NETWORKS)
def test_held_out_numbers_and_bound_are_finite_and_follow_the_model(network):
    tokens = torch.randint(VOCAB, (40, LENGTH), generator=torch.Generator().manual_seed(2))
    model = model_of(network)
    found = held_out(model, tokens, HeldOutConfig(2, times=3))
    bound = likelihood(model, tokens, LikelihoodConfig(times=20))
    assert 0 < found["cross_entropy"] < 10 and 1 < bound["nats_per_token"] < 10
    with torch.no_grad():  # all tokens alike: what a network without weights says of uniform data is right
        for parameter in (model.backbone.head_weight, model.backbone.head_bias):
            parameter.zero_()
    flat = likelihood(model, tokens, LikelihoodConfig(times=20))
    assert flat["nats_per_token"] < bound["nats_per_token"]
    if network == "hollow":
        assert flat["nats_per_token"] == pytest.approx(torch.tensor(5.0).log().item(), abs=0.02)


def test_frozen_positions_are_not_learnt_and_stay():
    model = model_of("denoiser", frozen_share=1.0)
    tokens = torch.randint(VOCAB, (40, LENGTH), generator=torch.Generator().manual_seed(2))
    assert torch.isfinite(model.loss(tokens, 0, 0))
    frozen = torch.rand(40, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.5
    drawn = model.infill(tokens, frozen, SamplingConfig(sites_per_step=3), seed=0).tokens
    assert torch.equal(drawn[frozen], tokens[frozen]) and not torch.equal(drawn, tokens)
