"""Every combination of the loss's options: its formula in float64, gradients and all, or a refusal by name."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn.functional import softplus

from ggm import GGMConfig, HollowConfig, ObjectiveConfig
from ggm.chain import ChainConfig
from ggm.objective import FORMS, Visits
from ggm.predictions import Predictions
from ggm_kernels import NoiseLaw, Stream, corrupt, random_tokens

BATCH, SITES, VOCAB = 5, 3, 11
ROWS, SEED, STEP = BATCH * SITES, 3, 7
OPTIONS = {"candidates": (None, 2), "shared_candidates": (None, 16), "noise_ratio": (None, 3.0)}
SKEWED = torch.arange(1.0, VOCAB + 1, dtype=torch.float64) / (VOCAB * (VOCAB + 1) / 2)
NOISES = {"uniform": None, "unigram": NoiseLaw(SKEWED)}


def every_combination():
    for form, *values in itertools.product(FORMS, *OPTIONS.values()):
        yield form, dict(zip(OPTIONS, values, strict=True))


def refused_for(form: str, options: dict, predicts: str) -> set[str]:
    """Fields that may be named: those that do not go with the form or with another."""
    given = {name for name, value in options.items() if value is not None}
    if form in ("observed", "cross_entropy") and given:
        return given
    if form == "marginal" and "shared_candidates" in given and "candidates" not in given:
        return {"candidates"}
    return {"objective.form"} if predicts == "data" and form in ("observed", "summed") else set()


def configured(form: str, options: dict, predicts: str) -> ObjectiveConfig:
    chain = ChainConfig(6)
    config = GGMConfig(VOCAB, chain, HollowConfig(), ObjectiveConfig(form, **options), predicts=predicts)
    return config.objective


def predictions_of(noise: NoiseLaw | None, predicts: str) -> Predictions:
    generator = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randint(VOCAB, (BATCH, SITES), generator=generator)

    def probs() -> torch.Tensor:
        return 0.1 + 0.8 * torch.rand(BATCH, SITES, generator=generator, dtype=torch.float64)

    visits = Visits(torch.arange(BATCH) + 10, tokens(), tokens(), probs(), probs())
    shapes = [(ROWS, 4), (VOCAB, 4), (VOCAB,)]
    factors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return Predictions(visits, *factors, noise, SEED, STEP, predicts)


def formula(config: ObjectiveConfig, given: Predictions) -> torch.Tensor:
    """Losses [R] as docs/mathematics.md has them, from all logits."""
    visits, noise = given.visits, given.noise
    pi = torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64) if noise is None else noise.probs
    g = given.hidden.double() @ given.weight.double().T + given.bias.double()
    eps, alpha = visits.noise_rate.flatten(), visits.keep_prob.flatten()
    alpha = torch.ones_like(alpha) if given.predicts == "data" else alpha

    def at(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return values.gather(1, tokens.reshape(ROWS, -1))

    if config.form == "cross_entropy":
        log_probs = g.log_softmax(1)
        return -(alpha * at(log_probs, visits.data)[:, 0] + (1 - alpha) * (log_probs @ pi))
    coordinates = {"seed": SEED, "step": STEP, "noise": noise}
    signal, replaced = 1 - eps, eps
    if config.noise_ratio is not None:
        signal, replaced = torch.ones_like(eps), torch.full_like(eps, config.noise_ratio)
    f = g - pi.log() + (signal / replaced).log()[:, None]
    if config.form == "observed":
        token, is_signal = corrupt(
            visits.current, 1 - visits.noise_rate.float(), VOCAB, sample_ids=visits.sample_ids, **coordinates
        )
        seen = at(f, token)[:, 0]
        return torch.where(is_signal.flatten(), softplus(-seen), softplus(seen))
    every = torch.arange(VOCAB).expand(ROWS, -1)
    own, share = every, pi.expand(ROWS, -1)
    if config.candidates is not None:
        stream = {"stream": Stream.CANDIDATES}
        own = random_tokens(visits.sample_ids, SITES * config.candidates, VOCAB, **stream, **coordinates)
        own, share = own.view(ROWS, -1), torch.full((ROWS, config.candidates), 1.0 / config.candidates)
    drawn, weights = own, share
    if config.shared_candidates is not None:
        zero, stream = torch.zeros(1, dtype=torch.int64), {"stream": Stream.SHARED_CANDIDATES}
        shared = random_tokens(zero, config.shared_candidates, VOCAB, **stream, **coordinates)
        drawn = (
            shared.expand(ROWS, -1)
            if config.candidates is None
            else torch.cat([own, shared.expand(ROWS, -1)], dim=1)
        )
        weights = torch.full(drawn.shape, 1.0 / drawn.shape[1])
    of_noise = replaced * (weights * softplus(at(f, drawn))).sum(1)
    if config.form == "summed":
        return signal * softplus(-at(f, visits.current))[:, 0] + of_noise
    of_signal = alpha * softplus(-at(f, visits.data))[:, 0] + (1 - alpha) * (
        share * softplus(-at(f, own))
    ).sum(1)
    return signal * of_signal + of_noise


def check(config: ObjectiveConfig, given: Predictions, expected: Predictions) -> None:
    """Losses, their mean over rows of which some do not count, and the gradients of that."""
    torch.testing.assert_close(given.losses(config).double(), formula(config, expected), rtol=2e-5, atol=1e-5)
    counts = torch.arange(ROWS) % 4 != 1
    mean = given.mean_loss(config, counts)
    by_hand = (formula(config, expected) * counts).mean()
    assert mean.dtype == torch.float32
    leaves = [given.hidden, given.weight, given.bias]
    found = [mean.double(), *(value.double() for value in torch.autograd.grad(mean, leaves))]
    wanted = [by_hand, *(value.double() for value in torch.autograd.grad(by_hand, leaves))]
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(given.mean_loss(config), given.losses(config).mean())


@pytest.mark.parametrize("predicts", ["state", "data"])
@pytest.mark.parametrize("noise", NOISES)
def test_every_combination_is_its_formula_or_refused_by_name(noise, predicts):
    seen = 0
    for form, options in every_combination():
        refused = refused_for(form, options, predicts)
        if refused:
            with pytest.raises(ValueError) as error:
                configured(form, options, predicts)
            assert str(error.value).partition(":")[0] in refused, (form, options)
            assert "; allowed: " in str(error.value)
            continue
        seen += 1
        given = predictions_of(NOISES[noise], predicts)
        check(configured(form, options, predicts), given, given)
    assert seen == {"state": 1 + 8 + 6 + 1, "data": 6 + 1}[predicts]


FAULTS = {
    "data for state": {"predicts": "data"},
    "another law of the noise": {"noise": NoiseLaw(SKEWED.flip(0))},
    "draws of another step": {"step": STEP + 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen_in_every_combination_that_it_touches(fault):
    given, seen = predictions_of(NOISES["unigram"], "state"), 0
    for form, options in every_combination():
        if refused_for(form, options, "state"):
            continue
        is_exact = form == "cross_entropy" or (form != "observed" and not any(list(options.values())[:2]))
        touched = {
            "data for state": form in ("marginal", "cross_entropy"),
            "draws of another step": not is_exact,
        }
        if not touched.get(fault, True):
            continue
        seen += 1
        with pytest.raises(AssertionError):
            check(configured(form, options, "state"), dataclasses.replace(given, **FAULTS[fault]), given)
    assert seen >= 7
