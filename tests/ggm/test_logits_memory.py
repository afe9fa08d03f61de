"""No logits of all rows and tokens are made: in training by any loss of few candidates, nor in evaluation.

What is watched is every piece of memory that a tensor is given, inside operators, too: none has a byte for each logit.
"""

import pytest
import torch
from allocations import largest_allocation
from torch.nn.functional import cross_entropy, linear

from ggm import GGM, ChainConfig, DenoiserConfig, GGMConfig, HollowConfig, MaskedConfig, ObjectiveConfig
from ggm import objective as objective_module
from ggm import predictions as predictions_module
from ggm.evaluation import log_conditionals
from ggm.evaluation.config import LikelihoodConfig
from ggm.evaluation.held_out import HeldOutConfig, held_out
from ggm.evaluation.likelihood import likelihood
from ggm_kernels import sigmoid_bce

BATCH, LENGTH, VOCAB = 40, 64, 5000  # more rows than a block of any kernel has
LOGITS = BATCH * LENGTH * VOCAB
NETWORKS = {
    "masked": MaskedConfig(width=16, depth=1, heads=2),
    "hollow": HollowConfig(width=16, depth=1, mixing=1, heads=2),
    "denoiser": DenoiserConfig(width=16, depth=1, heads=2),
}
OBJECTIVES = {
    "observed": ObjectiveConfig("observed"),
    "summed, drawn": ObjectiveConfig("summed", candidates=2),
    "summed, shared": ObjectiveConfig("summed", shared_candidates=300),
    "marginal, drawn": ObjectiveConfig("marginal", candidates=2),
    "marginal, noise ratio": ObjectiveConfig("marginal", candidates=2, noise_ratio=4.0),
    "marginal, shared": ObjectiveConfig("marginal", candidates=1, shared_candidates=300),
    "cross-entropy": ObjectiveConfig("cross_entropy"),
}
OF_DATA = ("marginal, drawn", "marginal, shared", "cross-entropy")
VARIANTS = [
    *((objective, "hollow", "state") for objective in OBJECTIVES),
    ("cross-entropy", "masked", "state"),
    *((objective, "denoiser", "data") for objective in OF_DATA),
    ("cross-entropy", "hollow", "data"),
]


def model_of(objective: str, network: str, predicts: str) -> GGM:
    torch.manual_seed(0)
    chain = ChainConfig(LENGTH, sweeps=2)
    probs = torch.rand(VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return GGM(
        GGMConfig(
            VOCAB,
            chain,
            NETWORKS[network],
            OBJECTIVES[objective],
            masked_counts=(LENGTH,),
            frozen_share=0.5,
            noise_probs=tuple((probs / probs.sum()).tolist()),
            predicts=predicts,
        )
    )


def data() -> torch.Tensor:
    return torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def train(model: GGM, autocast: bool = False) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(data(), seed=0, step=0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def evaluate(model: GGM) -> None:
    found = held_out(model, data(), HeldOutConfig(LENGTH, times=1, batch=BATCH))
    assert 0 < found["cross_entropy"] < 20


def bound(model: GGM) -> None:
    assert likelihood(model, data(), LikelihoodConfig(1, LENGTH, batch=BATCH))["nats_per_token"] > 0


@pytest.mark.parametrize(("objective", "network", "predicts"), VARIANTS)
def test_training_and_evaluation_hold_no_logits_of_all_rows(objective, network, predicts):
    model = model_of(objective, network, predicts)
    assert largest_allocation(lambda: train(model)) < LOGITS
    assert largest_allocation(lambda: evaluate(model)) < LOGITS


@pytest.mark.parametrize(
    ("network", "predicts"), [("masked", "state"), ("hollow", "data"), ("denoiser", "data")]
)
def test_the_likelihood_bound_holds_no_logits_of_all_rows(network, predicts):
    model = model_of("cross-entropy", network, predicts)
    assert largest_allocation(lambda: bound(model)) < LOGITS


def test_neither_does_training_in_half_precision():
    model = model_of("cross-entropy", "denoiser", "data")
    assert largest_allocation(lambda: train(model, autocast=True)) < LOGITS


def of_all_logits(hidden, weight, targets, *, bias=None, row_weight=None, return_log_sum_exp=False, **_):
    logits = linear(hidden, weight, bias)
    losses = cross_entropy(logits, targets, reduction="none")
    losses = losses if row_weight is None else (row_weight * losses).sum()
    return (losses, logits.logsumexp(1)) if return_log_sum_exp else losses


def bce_of_all_logits(hidden, weight, candidates, signal, noise, *, bias=None, **options):
    return sigmoid_bce(linear(hidden, weight, bias), candidates, signal, noise, **options)


FAULTS = {
    "cross-entropy of the data": (train, "cross-entropy", "data", predictions_module, of_all_logits),
    "cross-entropy of the state": (train, "cross-entropy", "state", objective_module, of_all_logits),
    "candidates": (train, "marginal, drawn", "state", objective_module, bce_of_all_logits),
    "shared candidates": (train, "marginal, shared", "data", objective_module, bce_of_all_logits),
    "calibration": (evaluate, "marginal, drawn", "state", predictions_module, of_all_logits),
    "cross-entropy of X_t": (evaluate, "marginal, drawn", "state", objective_module, of_all_logits),
    "mixture": (evaluate, "marginal, drawn", "data", predictions_module, {"_BLOCK": 2**40}),
    "bound": (bound, "cross-entropy", "state", log_conditionals, {"SUMMED_VOCABULARY": VOCAB}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    run, objective, predicts, module, wrong = FAULTS[fault]
    model = model_of(objective, "hollow", predicts)
    names = {of_all_logits: "linear_cross_entropy", bce_of_all_logits: "linear_sigmoid_bce"}
    changes = wrong if isinstance(wrong, dict) else {names[wrong]: wrong}
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    assert largest_allocation(lambda: run(model)) >= LOGITS
