"""Every variant of a GGM, trained on an enumerable law, reaches it within the sampling error."""

import itertools

import pytest
import torch
from enumerable import Law, assert_follows, law_at, random_joint, skewed
from test_data_prediction_law import FAULTS
from torch.nn.functional import linear, one_hot

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    ObjectiveConfig,
    SamplingConfig,
    TrainingConfig,
    train,
)
from ggm.sampling import steps

DATA: Law = random_joint(length=3, vocab_size=3, spread=1.2)
CHAIN = ChainConfig(3, sweeps=3, schedule="linear", final_keep=1e-3)
NOISES = {"uniform": None, "skewed": tuple(skewed(3).tolist())}
OBJECTIVES = {
    "observed": ObjectiveConfig("observed"),
    "summed": ObjectiveConfig("summed"),
    "marginal": ObjectiveConfig("marginal", noise_ratio=3.0),
    "marginal, drawn": ObjectiveConfig("marginal", candidates=2, noise_ratio=3.0),
    "marginal, shared": ObjectiveConfig("marginal", candidates=1, shared_candidates=16, noise_ratio=3.0),
    "cross-entropy": ObjectiveConfig("cross_entropy"),
}
PROCESSES = {
    "heat bath": SamplingConfig(),
    "keep or replace": SamplingConfig(keep_or_replace=True),
    "events": SamplingConfig(keep_or_replace=True, event_driven=True, horizon=1),
}
BACKBONES = {
    "masked": MaskedConfig(width=32, depth=2, heads=2),
    "hollow": HollowConfig(width=32, depth=1, mixing=1, heads=2),
    "denoiser": DenoiserConfig(width=32, depth=2, heads=2),
}
COUNT = 10_000


class Table(torch.nn.Module):
    """A row of logits per time, position and context: what a network with no limits learns."""

    def __init__(self, model: GGM) -> None:
        super().__init__()
        self.keep_probs = model.chain.keep_prob(torch.arange(model.chain.steps + 1))
        self.sees_own = model.config.backbone.sees_own_token
        rows = len(self.keep_probs) * 3 * 27
        self.rows = torch.nn.Parameter(torch.full((rows, 3), -1.1))
        self.head_bias = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        self.head_weight = torch.nn.Parameter(torch.eye(3), requires_grad=False)

    def forward(self, tokens, positions, time, keep_prob):
        if positions is None:
            positions = torch.arange(3).expand(len(tokens), -1)
        at = (keep_prob[:, None] - self.keep_probs).abs().sum(2).argmin(1)[:, None]
        states = tokens[:, None].expand(-1, positions.shape[1], -1)
        if not self.sees_own:
            states = states.masked_fill(one_hot(positions, 3).bool(), 0)
        context = (states * torch.tensor([9, 3, 1])).sum(2)
        return self.rows[(at * 3 + positions) * 27 + context]


def trained(
    predicts: str,
    backbone: str,
    objective: str,
    noise: str,
    *,
    table: bool,
    count: int,
    times: str = "uniform",
) -> GGM:
    torch.manual_seed(0)
    config = GGMConfig(
        3,
        CHAIN,
        BACKBONES[backbone],
        OBJECTIVES[objective],
        masked_counts=(1 if backbone == "masked" else 3,),
        noise_probs=NOISES[noise],
        predicts=predicts,
        training_times=times,
    )
    model = GGM(config)
    if table:
        model.backbone = Table(model)
    rate, size = (0.1, 1024) if table else (1e-2, 512)
    training = TrainingConfig(steps=count, batch_size=size, learning_rate=rate, weight_decay=0.0, clip=10.0)
    return train(model, DATA.sample(64 * 1024, seed=7), training).model


def through_logits(tokens, hidden, weight, positions, *, bias, **options):
    """A step from factors by one from logits, which a fault may stand in for."""
    return steps.glauber_step(tokens, linear(hidden, weight, bias), positions, **options)


def drawn(model: GGM, process: str, count: int = COUNT) -> torch.Tensor:
    return model.sample(count, PROCESSES[process], seed=8).tokens


# Prediction, backbone, loss, noise, reverse step: a few together here, all in the slow test.
FEW = [
    ("state", "hollow", "marginal", "skewed", "events"),
    ("data", "hollow", "marginal", "uniform", "keep or replace"),
    ("data", "masked", "marginal, drawn", "skewed", "heat bath"),
    ("data", "denoiser", "cross-entropy", "skewed", "events"),
    ("data", "denoiser", "marginal", "uniform", "heat bath"),
]


@pytest.mark.parametrize("variant", FEW, ids=", ".join)
def test_tables_reach_the_data_law(variant):
    *kind, process = variant
    assert_follows(drawn(trained(*kind, table=True, count=200), process), DATA)


@pytest.mark.parametrize("predicts", ["state", "data"])
def test_the_law_does_not_depend_on_the_times_of_training(predicts):
    model = trained(predicts, "hollow", "marginal", "skewed", table=True, count=300, times="kept")
    assert_follows(drawn(model, "keep or replace"), DATA)


def test_faults_of_a_trained_table_are_noticed(monkeypatch):
    """Before the last sweep, which mends a part of what is wrong."""
    model = trained("data", "denoiser", "marginal", "skewed", table=True, count=200)
    expected, keep_prob = law_at(DATA, model.chain, 3, skewed(3)), model.chain.keep_prob

    def check() -> None:
        seen = {}
        config = PROCESSES["keep or replace"]
        model.sample(COUNT, config, seed=8, observe=lambda t, x: seen.update({t: x.clone()}))
        assert_follows(seen[3], expected)

    check()
    late = lambda times: keep_prob((times + 1).clamp_max(9))  # noqa: E731
    for place, name, fault in (
        (steps, "glauber_step", FAULTS["no pi"]),
        (steps, "glauber_step", FAULTS["no mixture"]),
        (steps, "glauber_step", FAULTS["keep decision without mixture"]),
        (model.chain, "keep_prob", late),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fault)
            if name == "glauber_step":
                patch.setattr(place, "linear_glauber_step", through_logits)
            with pytest.raises(AssertionError, match="total variation"):
                check()


ALL = [
    (*kind, process)
    for *kind, process in itertools.product(("state", "data"), BACKBONES, OBJECTIVES, NOISES, PROCESSES)
    if not (kind[0] == "data" and kind[2] in ("observed", "summed"))
    and not (kind[0] == "state" and kind[1] == "denoiser")
    and not (kind[1] == "masked" and process == "events")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({variant[:4] for variant in ALL}), ids=", ".join)
def test_every_variant_reaches_the_data_law(kind):
    """Networks, trained for seconds, and all of their processes."""
    model = trained(*kind, table=False, count=1200)
    for process in PROCESSES:
        if (*kind, process) in ALL:
            assert_follows(drawn(model, process, count=4000), DATA)
