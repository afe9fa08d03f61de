"""The levers: rows that each change one thing of a problem's base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.choices.problems import PROBLEMS
from ggm import DenoiserConfig, GGMConfig, MaskedConfig, ObjectiveConfig, TrainingConfig

BASE = "base"


@dataclass(frozen=True)
class Setup:
    """What a row trains.

    Attributes
    ----------
    model : GGMConfig
        But for vocab_size and noise_probs, which the data decide.
    training : TrainingConfig
        But for seconds and seed.
    unigram : bool
        Whether the noise has the frequencies of the training tokens.
    """

    model: GGMConfig
    training: TrainingConfig
    unigram: bool = False


Change = Callable[[Setup], Setup]


def _model(**changes: object) -> Change:
    return lambda setup: replace(setup, model=replace(setup.model, **changes))  # type: ignore[arg-type]


def _training(**changes: object) -> Change:
    return lambda setup: replace(setup, training=replace(setup.training, **changes))  # type: ignore[arg-type]


def _chain(**changes: object) -> Change:
    return lambda setup: _model(chain=replace(setup.model.chain, **changes))(setup)  # type: ignore[arg-type]


def _objective(**values: object) -> Change:
    return _model(objective=ObjectiveConfig(**values))  # type: ignore[arg-type]


def _scaled_rate(factor: float) -> Change:
    return lambda setup: _training(learning_rate=factor * setup.training.learning_rate)(setup)


def _network(kind: type[MaskedConfig] | type[DenoiserConfig], **changes: object) -> Change:
    """Another network of the base's size, with as many blocks as its two streams have in one."""

    def change(setup: Setup) -> Setup:
        base = setup.model.backbone
        shape = {"width": base.width, "heads": base.heads, "mlp_ratio": base.mlp_ratio}
        network = kind(depth=base.depth + 1, positions=base.positions, grid=base.grid, **shape)
        return _model(backbone=network, **changes)(setup)

    return change


_STATE = {"objective": ObjectiveConfig("marginal", noise_ratio=40.0), "predicts": "state"}
_FEW = (12, 8, 4)

# Every row but those of the head at V = 50257, which has no room for sums over the vocabulary.
_LEVERS: dict[str, dict[str, Change]] = {
    "prediction and network": {
        "masked, state": _network(MaskedConfig, masked_counts=_FEW, **_STATE),
        "masked, data": _network(MaskedConfig, masked_counts=_FEW),
        "hollow, state": _model(**_STATE),
        "denoiser, data": _network(DenoiserConfig),
    },
    "loss and candidates": {
        "binary, 1 candidate": _objective(candidates=1, noise_ratio=10.0),
        "binary, 16 candidates": _objective(candidates=16, noise_ratio=10.0),
        "binary, all": _objective(noise_ratio=10.0),
    },
    "noise ratio": {
        "1": _objective(noise_ratio=1.0),
        "100": _objective(noise_ratio=100.0),
        "the chain's": _objective(),
    },
    "noise": {"unigram": lambda setup: replace(setup, unigram=True)},
    "chain": {
        "2 sweeps": _chain(sweeps=2),
        "8 sweeps": _chain(sweeps=8),
        "sine": _chain(schedule="sine"),
    },
    "weights over time": {"share kept": _model(training_times="kept")},
    "positions per pass": {
        "1": _model(masked_counts=(1,)),
        "16": _model(masked_counts=(16,)),
    },
    "learning rate": {"a half": _scaled_rate(0.5), "twice": _scaled_rate(2.0)},
    "average": {"0.9": _training(ema_decay=0.9)},
}
_HEADS: dict[str, Change] = {
    "binary, 1 candidate": _objective(candidates=1, noise_ratio=512.0),
    "binary, 16 candidates": _objective(candidates=16, noise_ratio=512.0),
    "binary, 512 candidates": _objective(candidates=512, noise_ratio=512.0),
    "binary, 512 shared": _objective(candidates=1, shared_candidates=512, noise_ratio=512.0),
    "binary, 4096 shared": _objective(candidates=1, shared_candidates=4096, noise_ratio=512.0),
}
LEVERS = {"digits": _LEVERS, "characters": _LEVERS, "words": {"head": _HEADS}}


@dataclass(frozen=True, order=True)
class Row:
    """A row of the page, and one of its seeds: a run."""

    problem: str
    lever: str
    name: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return " / ".join((self.problem, self.lever, self.name, str(self.seed)))

    def setup(self) -> Setup:
        """What it trains."""
        problem = PROBLEMS[self.problem]
        base = Setup(problem.model, problem.training)
        return base if self.lever == BASE else LEVERS[self.problem][self.lever][self.name](base)


def names_of(problem: str) -> list[tuple[str, str]]:
    """Levers and names of a problem's rows, the base first."""
    return [(BASE, BASE), *((lever, name) for lever, names in LEVERS[problem].items() for name in names)]


def rows(seeds: int, problems: list[str]) -> list[Row]:
    """All runs, one seed after the other, so that what is there at any time is of equal worth."""
    names = [(problem, *names) for problem in problems for names in names_of(problem)]
    return [Row(*name, seed) for seed in range(seeds) for name in names]
