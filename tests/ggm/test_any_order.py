"""`GGM.sample` and `GGM.infill` in an order of each sequence's own: what the network is told, and what goes together."""

import random

import pytest
import torch

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    Ramp,
    ReDenoise,
    SamplingConfig,
    from_denoiser,
)
from ggm.chain import Chain
from ggm.sampling.any_order import denoise_in_any_order
from ggm.sampling.steps import DataPrediction

LENGTH, VOCAB, COUNT = 8, 5, 6
NETWORKS = {
    "hollow": HollowConfig(width=16, depth=1, mixing=1, heads=2),
    "denoiser": DenoiserConfig(width=16, depth=1, heads=2),
    "masked": MaskedConfig(width=16, depth=1, heads=2),
}
ORDERS = ["confidence", "random"]
TOKENS = torch.randint(VOCAB, (COUNT, LENGTH), generator=torch.Generator().manual_seed(0))
FROZEN = torch.rand(COUNT, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.4


def model_of(network: str = "denoiser", predicts: str = "data") -> GGM:
    torch.manual_seed(0)
    chain = ChainConfig(LENGTH, sweeps=3)
    noise = (0.3, 0.3, 0.2, 0.1, 0.1)
    model = GGM(GGMConfig(VOCAB, chain, NETWORKS[network], noise_probs=noise, predicts=predicts))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def told(monkeypatch):
    """Tokens, time and keep probabilities that a model's network is shown, from call to call."""
    model, seen = model_of(), []
    forward = model.backbone.forward

    def spy(tokens, positions, time, keep_prob):
        seen.append((tokens.clone(), time * model.chain.steps, keep_prob.clone()))
        return forward(tokens, positions, time, keep_prob)

    monkeypatch.setattr(model.backbone, "forward", spy)
    return model, seen


@pytest.mark.parametrize("order", ORDERS)
def test_the_network_is_told_what_is_settled_and_its_noise_stays(told, order):
    model, seen = told
    config = SamplingConfig(order=order, sites_per_step=3, redenoise=ReDenoise(sweeps=1))
    result = model.infill(TOKENS, FROZEN, config, seed=1)
    steps = -(-(~FROZEN).sum(dim=1) // 3)
    most = int(steps.max())
    assert result.network_evaluations == len(seen) == 2 * most
    assert result.site_updates == 2 * int((~FROZEN).sum())
    for sweeps, calls in ((3, seen[:most]), (1, seen[most:])):
        level = float(model.chain.keep_prob(torch.tensor([sweeps * LENGTH]))[0, 0])
        open_before = ~FROZEN
        for number, (tokens, time, keep_prob) in enumerate(calls):
            assert (time.round() == sweeps * LENGTH).all()
            is_open = keep_prob < 1.0
            assert torch.equal(keep_prob[is_open], torch.full_like(keep_prob[is_open], level))
            assert not (is_open & ~open_before).any() and torch.equal(tokens[FROZEN], TOKENS[FROZEN])
            assert torch.equal(tokens[is_open], calls[0][0][is_open]), "what is open keeps its noise"
            if number:  # evenly, as few evaluations as the number of sites allows
                left = open_before.sum(dim=1)
                share = -(-left // (steps - number + 1).clamp_min(1))
                assert torch.equal(left - is_open.sum(dim=1), share) and int(share.max()) <= 3
            open_before = is_open


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("network", ["hollow", "denoiser"])
def test_seeds_and_ids_are_all_that_a_sample_depends_on(network, order):
    model = model_of(network)
    with torch.no_grad():  # so sure that all seeds draw the same, else
        for parameter in model.parameters():
            parameter.mul_(0.2)
    config = SamplingConfig(order=order, sites_per_step=2, temperature=Ramp(1.5, 0.5), top_p=0.9)
    every = model.sample(COUNT, config, seed=4).tokens
    assert torch.equal(every, model.sample(COUNT, config, seed=4).tokens)
    ids = torch.tensor([4, 1])
    assert torch.equal(every[ids], model.sample(2, config, seed=4, sample_ids=ids).tokens)
    assert not torch.equal(every, model.sample(COUNT, config, seed=5).tokens)
    other = "random" if order == "confidence" else "confidence"
    changed = SamplingConfig(order=other, sites_per_step=2, temperature=Ramp(1.5, 0.5), top_p=0.9)
    assert not torch.equal(every, model.sample(COUNT, changed, seed=4).tokens)


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_the_rounding_of_a_sure_network_does_not_decide_the_order(threshold):
    """Probabilities within 1e-6 of 1, larger from left to right or from right to left, go by position."""
    chain, tokens = Chain.from_config(ChainConfig(LENGTH)), torch.ones(1, LENGTH, dtype=torch.int64)
    config = SamplingConfig(order="confidence", confidence_threshold=threshold)

    def order_of(logits):
        asked = []

        def sure(tokens, times, given):
            asked.append(given[0].tolist())
            everywhere = torch.zeros(1, LENGTH, VOCAB)
            everywhere[..., 0] = logits
            return DataPrediction(everywhere, torch.ones(1, LENGTH))

        assert not denoise_in_any_order(sure, chain, tokens, config, seed=0).tokens.any()
        return asked

    logits = torch.linspace(16.0, 20.0, LENGTH)
    settled = [
        (torch.arange(LENGTH) < number).tolist() for number in range(LENGTH if threshold is None else 1)
    ]
    assert order_of(logits) == order_of(logits.flip(0)) == settled
    if threshold is None:  # what differs by more is ranked
        assert order_of(logits / 4)[1] == (torch.arange(LENGTH) == LENGTH - 1).tolist()


def test_a_threshold_saves_evaluations_and_a_pass_ends_when_all_is_settled():
    model = model_of()
    with torch.no_grad():  # not as sure as it was
        model.backbone.head_weight.mul_(0.1)
    for again in (None, ReDenoise(sweeps=1)):
        evaluations = [
            model.sample(
                COUNT,
                SamplingConfig(order="confidence", confidence_threshold=threshold, redenoise=again),
                seed=4,
            ).network_evaluations
            for threshold in (None, 0.5, 1e-30)
        ]
        passes = 1 if again is None else 2
        assert evaluations[0] == passes * LENGTH > evaluations[1] > evaluations[2] == passes


def test_temperature_zero_takes_the_likeliest_tokens_where_they_are_the_most_probable():
    """A network whose prediction is its bias: one evaluation a site, the same token everywhere, at any order."""
    model = model_of()
    torch.nn.init.zeros_(model.backbone.head_weight)
    with torch.no_grad():
        model.backbone.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0, 0.5]))
    # Own tokens are taken out of what is not data: with noise alone nothing is.
    drawn = model.sample(COUNT, SamplingConfig(order="confidence", temperature=0.0), seed=0).tokens
    assert (drawn == 2).all()
    filtered = model.sample(200, SamplingConfig(order="confidence", top_k=2, sites_per_step=4), seed=0).tokens
    assert set(filtered.unique().tolist()) == {2, 3}


@pytest.mark.parametrize("order", ORDERS)
def test_observed_are_the_start_and_every_evaluation(order):
    seen = []
    config = SamplingConfig(order=order, sites_per_step=3)
    result = model_of().sample(2, config, seed=0, observe=lambda t, x: seen.append((t, x.clone())))
    assert [t for t, _ in seen] == [3 * LENGTH, 5, 2, 0]
    assert torch.equal(seen[-1][1], result.tokens)


def test_everything_given_or_nothing_asked_for_costs_nothing():
    config = SamplingConfig(order="confidence")
    result = model_of().infill(TOKENS, torch.ones_like(FROZEN), config, seed=0)
    assert torch.equal(result.tokens, TOKENS) and result.network_evaluations == result.site_updates == 0
    assert model_of().sample(0, config, seed=0).tokens.shape == (0, LENGTH)
    model, none = model_of(), TOKENS[:0]
    result = denoise_in_any_order(model.data_conditionals(), model.chain, none, config, seed=0)
    assert result.tokens.shape == (0, LENGTH) and result.network_evaluations == 0


@pytest.mark.parametrize(
    ("network", "predicts"), [("masked", "state"), ("masked", "data"), ("hollow", "state")]
)
def test_networks_that_cannot_are_refused(network, predicts):
    model = GGM(GGMConfig(VOCAB, ChainConfig(LENGTH), NETWORKS[network], predicts=predicts))
    with pytest.raises(
        ValueError, match=f"order: got one for a {network} network that predicts the {predicts}"
    ):
        model.sample(1, SamplingConfig(order="random"), seed=0)


def test_denoisers_that_are_not_told_what_is_given_are_refused():
    converted = from_denoiser(lambda tokens, time: torch.zeros(*tokens.shape, 3), 3, ChainConfig(4))
    with pytest.raises(ValueError, match="order: got one for a network that is not told what is given"):
        converted.sample(1, SamplingConfig(order="confidence"), seed=0)


@pytest.mark.parametrize("settings", [{"event_driven": True}, {"corrector_sweeps": 1}, {"cuda_graph": True}])
def test_what_belongs_to_the_order_of_the_chain_is_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"order: got 'random' with {name}; allowed: chain"):
        SamplingConfig(order="random", **settings)


@pytest.mark.parametrize("settings", [{}, {"order": "random"}])
def test_a_threshold_is_one_of_confidence(settings):
    with pytest.raises(
        ValueError, match="confidence_threshold: got 0.5; allowed: None or, if `order` is conf"
    ):
        SamplingConfig(confidence_threshold=0.5, **settings)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"confidence_threshold: got {threshold}; allowed"):
            SamplingConfig(order="confidence", confidence_threshold=threshold)


@pytest.mark.parametrize("settings", [{}, {"order": "random", "sites_per_step": 2}])
def test_evaluations_stand_in_place_of_sites(settings):
    with pytest.raises(ValueError, match="evaluations_per_pass: got 4; allowed: None or, if `order`"):
        SamplingConfig(evaluations_per_pass=4, **settings)
    with pytest.raises(ValueError, match="evaluations_per_pass: got 0; allowed: .*1"):
        SamplingConfig(order="random", evaluations_per_pass=0)


@pytest.mark.parametrize("order", ORDERS)
def test_each_sequence_spreads_what_is_open_over_the_evaluations(told, order):
    model, seen = told
    open_counts = (~FROZEN).sum(dim=1)
    assert int(open_counts.min()) < 5 < int(open_counts.max())
    config = SamplingConfig(order=order, evaluations_per_pass=5, redenoise=ReDenoise(sweeps=1))
    result = model.infill(TOKENS, FROZEN, config, seed=1)
    assert result.network_evaluations == len(seen) == 10
    left = torch.stack([(keep_prob < 1.0).sum(dim=1) for _, _, keep_prob in seen[:5]])
    for number in range(5):
        steps = (open_counts.clamp_max(5) - number).clamp_min(1)
        following = left[number + 1] if number < 4 else torch.zeros_like(open_counts)
        assert torch.equal(left[number] - following, -(-left[number] // steps))


def options_of(case: int) -> dict:
    """Of everything that goes with an order of each sequence's own, something."""
    draws = random.Random(case)
    order = ORDERS[case % 2]
    return {
        "order": order,
        "keep_or_replace": draws.random() < 0.5,
        "temperature": draws.choice([1.0, 0.0, 0.7, Ramp(1.5, 0.5)]),
        "top_k": draws.choice([None, 1, 3]),
        "top_p": draws.choice([None, 0.8, Ramp(1.0, 0.6)]),
        "min_p": draws.choice([None, 0.1]),
        "redenoise": draws.choice([None, ReDenoise(sweeps=1), ReDenoise(sweeps=2, repeats=2)]),
        "confidence_threshold": draws.choice([None, 0.3, 0.9]) if order == "confidence" else None,
    }


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("network", ["hollow", "denoiser"])
def test_evaluations_go_with_every_other_option(network, case):
    """Rows alone are those of the batch, and the ends of the range are those of `sites_per_step`."""
    model, options = model_of(network), options_of(case)
    with torch.no_grad():  # not as sure as it was
        for parameter in model.parameters():
            parameter.mul_(0.3)

    def filled(rows=slice(None), **steps):
        ids = torch.arange(COUNT)[rows]
        config = SamplingConfig(**options, **steps)
        return model.infill(TOKENS[rows], FROZEN[rows], config, seed=case, sample_ids=ids)

    few = filled(evaluations_per_pass=3)
    assert torch.equal(few.tokens[FROZEN], TOKENS[FROZEN])
    passes = 1 if options["redenoise"] is None else 1 + options["redenoise"].repeats
    least = passes if options["confidence_threshold"] else 3 * passes
    assert least <= few.network_evaluations <= 3 * passes
    for row in range(COUNT):
        assert torch.equal(filled(slice(row, row + 1), evaluations_per_pass=3).tokens[0], few.tokens[row])
    for sites, evaluations in ((1, LENGTH), (1, 2**31 - 1), (LENGTH, 1)):
        one, other = filled(sites_per_step=sites), filled(evaluations_per_pass=evaluations)
        assert torch.equal(one.tokens, other.tokens) and one.network_evaluations == other.network_evaluations
    nobody = filled(slice(0), evaluations_per_pass=3)
    assert nobody.tokens.shape == (0, LENGTH) and nobody.network_evaluations == nobody.site_updates == 0


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="order: got 'raster'; allowed: chain, confidence, random"):
        SamplingConfig(order="raster")
