import dataclasses

import pytest
import torch

from ggm import GGM, ChainConfig, GGMConfig, HollowConfig, MaskedConfig, ObjectiveConfig
from ggm.evaluation.held_out import HeldOutConfig, held_out
from ggm.training.loop import evaluate
from ggm_kernels import corrupt

LENGTH, VOCAB = 6, 5
NETWORKS = {
    "masked": MaskedConfig(width=16, depth=1, heads=2),
    "hollow": HollowConfig(width=16, depth=1, heads=2),
}


def model_of(network: str = "masked", objective: ObjectiveConfig | None = None, **options) -> GGM:
    torch.manual_seed(1)
    chain = ChainConfig(LENGTH, sweeps=2)
    objective = objective or ObjectiveConfig(noise_ratio=3.0)
    model = GGM(GGMConfig(VOCAB, chain, NETWORKS[network], objective, masked_counts=(2,), **options))
    with torch.no_grad():  # heads start at 0, where all tokens are alike
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def data(count: int = 40) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count, LENGTH), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_hand(model: GGM, tokens: torch.Tensor, time: int, sites: int) -> tuple[float, float, float]:
    """Marginal loss with noise ratio nu, cross-entropy and sum of exp g, written out position by position."""
    times = torch.full((len(tokens),), time)
    alpha = model.chain.keep_prob(times)
    noisy, _ = corrupt(
        tokens, alpha.float(), VOCAB, seed=0, step=2 * time, sample_ids=torch.arange(len(tokens))
    )
    steps = torch.arange(time, time + sites)
    positions, _ = model.chain.visits(steps)
    given = model.conditionals()(noisy, positions, time)
    g = (given.hidden @ given.weight.T + given.bias).double()
    nu = model.config.objective.noise_ratio
    f = g - torch.log(torch.tensor(nu)) + torch.log(torch.tensor(float(VOCAB)))
    minus, plus = torch.nn.functional.softplus(-f), torch.nn.functional.softplus(f)
    losses, entropies = [], []
    for k, position in enumerate(positions.tolist()):
        for row in range(len(tokens)):
            keep, token = alpha[row, position], tokens[row, position]
            signal = keep * minus[row, k, token] + (1 - keep) * minus[row, k].mean()
            losses.append(signal + nu * plus[row, k].mean())
            log_probs = g[row, k].log_softmax(0)
            entropies.append(-keep * log_probs[token] - (1 - keep) * log_probs.mean())
    sums = g.exp().sum(-1)
    return float(torch.stack(losses).mean()), float(torch.stack(entropies).mean()), float(sums.mean())


@pytest.mark.parametrize(("network", "sites"), [("masked", 1), ("masked", 2), ("hollow", 1)])
def test_losses_by_time_are_the_formula(network, sites):
    model, tokens = model_of(network), data()
    found = held_out(model, tokens, HeldOutConfig(sites, times=3, batch=16))
    assert [row["time"] for row in found["by_time"]] == [2, 6, 10]
    for row in found["by_time"]:
        loss, cross_entropy, total = by_hand(model, tokens, row["time"], sites)
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert row["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
        assert row["calibration"] == pytest.approx(total, rel=1e-5)
    # The comparison can fail: one step of the chain further on the numbers are others.
    loss, cross_entropy, _ = by_hand(model, tokens, 3, sites)
    assert found["by_time"][0]["loss"] != pytest.approx(loss, rel=1e-3)
    assert found["by_time"][0]["cross_entropy"] != pytest.approx(cross_entropy, rel=1e-3)
    for name in ("loss", "cross_entropy", "calibration"):
        assert found[name] == pytest.approx(sum(row[name] for row in found["by_time"]) / 3)


@pytest.mark.parametrize("form", ["observed", "summed", "marginal", "cross_entropy"])
def test_every_objective_is_evaluated_and_batches_do_not_matter(form):
    model = model_of(objective=ObjectiveConfig(form), noise_probs=(0.1, 0.2, 0.3, 0.3, 0.1))
    whole, parts = (held_out(model, data(), HeldOutConfig(2, times=4, batch=batch)) for batch in (64, 7))
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
    assert whole["loss_standard_error"] == pytest.approx(parts["loss_standard_error"], rel=1e-4)
    if form == "cross_entropy":
        assert whole["loss"] == pytest.approx(whole["cross_entropy"])
    else:
        assert whole["loss"] != pytest.approx(whole["cross_entropy"], rel=1e-3)


def test_candidates_are_those_of_the_objective():
    model = model_of(objective=ObjectiveConfig("marginal", candidates=2, noise_ratio=3.0))
    exact = held_out(model_of(), data(4000), HeldOutConfig(2, times=2, batch=4000))
    drawn = held_out(model, data(4000), HeldOutConfig(2, times=2, batch=4000))
    gap = abs(drawn["loss"] - exact["loss"])
    assert 0 < gap < 5 * (drawn["loss_standard_error"] + exact["loss_standard_error"])
    assert drawn["cross_entropy"] == pytest.approx(exact["cross_entropy"])


@pytest.mark.parametrize("frozen_share", [0.0, 0.7])
def test_loss_calibration_and_evaluation_take_one_path(frozen_share, monkeypatch):
    """What is wrong with `GGM.predictions` is wrong with all of them: here, every hidden state."""
    model, tokens = model_of(frozen_share=frozen_share), data(8)

    def looks() -> list[float]:
        found = held_out(model, tokens, HeldOutConfig(1, times=1))
        own = [model.loss(tokens, 0, 0), model.calibration(tokens, 0).mean()]
        run = evaluate(model, tokens, batch=3)
        return [
            *(float(value.detach()) for value in own),
            *run.values(),
            *(found[key] for key in ("loss", "cross_entropy", "calibration")),
        ]

    right, predictions = looks(), GGM.predictions
    assert looks() == right

    def shifted(*arguments, **options):
        found = predictions(*arguments, **options)
        return dataclasses.replace(found, hidden=found.hidden + 1.0)

    monkeypatch.setattr(GGM, "predictions", shifted)
    assert all(wrong != pytest.approx(value, rel=1e-3) for wrong, value in zip(looks(), right, strict=True))


def test_all_times_at_most():
    found = held_out(model_of(), data(), HeldOutConfig(2, times=100))
    assert [row["time"] for row in found["by_time"]] == [0, 2, 4, 6, 8, 10]
    assert found["chain_steps"] == 12 and found["sequences"] == 40
    with pytest.raises(ValueError, match="times: got 0"):
        dataclasses.replace(HeldOutConfig(1), times=0)


@pytest.mark.parametrize("name", ["times", "sites_per_step", "batch"])
def test_config_names_its_fields(name):
    with pytest.raises(ValueError, match=f"^{name}: got 0; allowed: 1 or more$"):
        dataclasses.replace(HeldOutConfig(1), **{name: 0})
