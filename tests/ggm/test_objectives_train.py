"""Every loss trains every network: some steps on digits lower it on digits that were held out."""

import pytest
import torch

from ggm import (
    GGM,
    ChainConfig,
    DenoiserConfig,
    GGMConfig,
    HollowConfig,
    MaskedConfig,
    ObjectiveConfig,
    TrainingConfig,
    train,
)
from ggm.data.digits import load_digits

OBJECTIVES = {
    "observed": ObjectiveConfig(form="observed"),
    "summed": ObjectiveConfig(form="summed"),
    "summed, drawn": ObjectiveConfig(form="summed", candidates=2),
    "marginal": ObjectiveConfig(form="marginal"),
    "marginal, drawn": ObjectiveConfig(form="marginal", candidates=2),
    "noise ratio": ObjectiveConfig(form="marginal", noise_ratio=40.0),
    "noise ratio, drawn": ObjectiveConfig(form="marginal", candidates=2, noise_ratio=4.0),
    "shared": ObjectiveConfig(form="marginal", candidates=1, shared_candidates=16, noise_ratio=4.0),
    "cross-entropy": ObjectiveConfig(form="cross_entropy"),
}
BACKBONES = {
    "masked": (MaskedConfig(width=16, depth=1, heads=2), (16, 8)),
    "hollow": (HollowConfig(width=16, depth=1, mixing=1, heads=2), (16,)),
    "hollow, tied": (HollowConfig(width=16, depth=1, mixing=1, heads=2, tied=True), (16,)),
}


@pytest.fixture(scope="module")
def digits():
    return load_digits(4, 64)


def held_out_loss(model: GGM, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        return sum(float(model.loss(tokens, seed=1, step=step)) for step in range(2)) / 2


DATA_OBJECTIVES = ("noise ratio", "noise ratio, drawn", "shared", "cross-entropy")
VARIANTS = [
    *((objective, backbone, "state") for objective in OBJECTIVES for backbone in ("masked", "hollow")),
    *((objective, "hollow, tied", "state") for objective in ("observed", "shared", "cross-entropy")),
    *((objective, backbone, "data") for objective in DATA_OBJECTIVES for backbone in ("hollow", "denoiser")),
]
BACKBONES["denoiser"] = (DenoiserConfig(width=16, depth=1, heads=2), (64,))


@pytest.mark.parametrize(("objective", "backbone", "predicts"), VARIANTS)
def test_twenty_steps_lower_the_loss(objective, backbone, predicts, digits):
    torch.manual_seed(0)
    network, counts = BACKBONES[backbone]
    config = GGMConfig(
        4,
        ChainConfig(64, sweeps=2),
        network,
        OBJECTIVES[objective],
        masked_counts=counts,
        predicts=predicts,
    )
    model = GGM(config)
    before = held_out_loss(model, digits.held_out)
    result = train(model, digits.train, TrainingConfig(steps=20, batch_size=16, learning_rate=1e-2))
    assert result.steps == 20
    assert held_out_loss(model, digits.held_out) < 0.98 * before
