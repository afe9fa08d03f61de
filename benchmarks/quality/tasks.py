"""What is learnt: data, size of the network, and what is measured of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.quality import laws
from benchmarks.quality.autoregressive import Autoregressive
from benchmarks.quality.system import Shape
from benchmarks.quality.training import fit
from ggm.backbones.layers import TransformerConfig
from ggm.data import text
from ggm.data.digits import SIDE, load_digits
from ggm.data.puzzles import all_small_grids, draw_givens, is_solved, sudoku_grids
from ggm.data.sources import PydocData, load_data
from ggm.evaluation.distances import copied_share, frechet_distance
from ggm.evaluation.diversity import diversity
from ggm.files import replacing
from ggm.training.config import TrainingConfig

Measures = dict[str, float]
LEVELS = 4
TEXT_LENGTH = 64
# Of a preset's budget; 1 for those that are not here. Texts are at their unigrams for the first minute.
SHARES = {"pydoc-char": 4.0, "pydoc-bpe": 4.0, "sudoku-4": 0.5, "sudoku-9": 2.0, "potts": 0.25}


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes
    ----------
    train, held_out : torch.Tensor
        int64 [N, L] and [M, L].
    shape : Shape
        Length, vocabulary and size of the networks.
    measure : callable
        Measures of samples int64 [n, L] by name.
    puzzles : pair of torch.Tensor or None
        Sequences and what is given of them: infilled, and checked by `is_solved`.
    show : callable or None
        A sample as text.
    samples_factor : int
        How many times the preset's samples its measure needs per point.
    known : dict
        What else a reader should know of the data, by name.
    """

    train: torch.Tensor
    held_out: torch.Tensor
    shape: Shape
    measure: Callable[[torch.Tensor], Measures]
    puzzles: tuple[torch.Tensor, torch.Tensor] | None = None
    show: Callable[[torch.Tensor], str] | None = None
    samples_factor: int = 1
    known: Measures = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether samples are judged by two measures at once, over temperatures."""
        return self.show is not None


@dataclass(frozen=True)
class Evaluator:
    """How the evaluator of texts is trained, and where it is kept."""

    seconds: float
    cache: Path
    device: str = "cpu"


def size(width: int, depth: int, grid: tuple[int, ...] | None = None) -> TransformerConfig:
    """Network of a task: rotary and learned positions, four heads, narrow MLPs."""
    return TransformerConfig(width=width, depth=depth, heads=4, mlp_ratio=2.0, positions="both", grid=grid)


def digits(scale: int, evaluator: Evaluator, damaged: float = 0.0) -> Task:
    """Handwritten digits in four grey levels; in training a share of the pixels is black or white instead."""
    data = load_digits(LEVELS)
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(data.train.shape, generator=generator) < damaged
    extreme = (LEVELS - 1) * torch.randint(2, data.train.shape, generator=generator)
    train = torch.where(hit, extreme, data.train)

    def measure(samples: torch.Tensor) -> Measures:
        return {
            "frechet": frechet_distance(samples, data.train),
            "copies": copied_share(samples, data.train),
        }

    shape = Shape(SIDE * SIDE, LEVELS, size(64 * scale, 3, (SIDE, SIDE)))
    return Task(train, data.held_out, shape, measure)


def pydoc(scale: int, evaluator: Evaluator, tokenizer: str) -> Task:
    """English of Python's help texts; perplexity under an autoregressive model of the same texts."""
    data = load_data(PydocData(tokenizer=tokenizer, held_out=256), TEXT_LENGTH)
    train = data.train[torch.arange(len(data.train))]  # type: ignore[arg-type,index]
    shape = Shape(TEXT_LENGTH, data.vocab_size, size(96 * scale, 5))
    judge = trained_evaluator(train, shape, tokenizer.replace(":", ""), evaluator)

    def measure(samples: torch.Tensor) -> Measures:
        with torch.inference_mode():
            nats = torch.cat([-judge.log_probs(rows) for rows in samples.split(64)]).double()
        counted = diversity(samples.tolist())
        return {
            "perplexity": float(nats.mean().exp()),
            "perplexity_mean_over_samples": float(nats.mean(dim=1).exp().mean()),
            "entropy": counted["unigram_entropy"]["per_sample_mean"],
            "distinct_2": counted["distinct"]["2"]["pooled"],
            "distinct_3": counted["distinct"]["3"]["pooled"],
            "copies": copied_share(samples, train),
        }

    def show(sample: torch.Tensor) -> str:
        return text.decode(data.tokenizer, sample.tolist())

    # A judge that knows its training text by heart rewards copies.
    known = {"perplexity_of_training_text": measure(train[:: max(1, len(train) // 256)][:256])["perplexity"]}
    return Task(train, data.held_out, shape, measure, show=show, known=known)


def trained_evaluator(train: torch.Tensor, shape: Shape, name: str, evaluator: Evaluator) -> Autoregressive:
    """Autoregressive model that judges texts, as large as the systems and trained longer; kept in a file."""
    model = Autoregressive(shape)
    file = evaluator.cache / f"evaluator-{name}-{shape.size.width}-{evaluator.seconds:g}s.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    torch.manual_seed(1000)
    config = TrainingConfig(
        seconds=evaluator.seconds, batch_size=32, learning_rate=3e-3, weight_decay=0.1, seed=1000
    )
    model = fit(model.to(evaluator.device), train.to(evaluator.device), config).system.cpu()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as aside:
        torch.save(model.state_dict(), aside)
    return model


def sudoku(scale: int, evaluator: Evaluator, box: int) -> Task:
    """Solved grids; puzzles are those of held-out grids, with some cells given."""
    if box == 2:
        every = all_small_grids()
        shuffled = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
        train, held_out, least, most = shuffled[:224], shuffled[224:], 4, 8
    else:
        train, held_out = sudoku_grids(20_000, box, seed=0), sudoku_grids(256, box, seed=1)
        least, most = 30, 45
    side = box * box
    repeated = held_out.repeat(-(-256 // len(held_out)), 1)[:256]
    given = draw_givens(len(repeated), side * side, least, most, seed=2)

    def measure(samples: torch.Tensor) -> Measures:
        return {"valid": float(is_solved(samples).double().mean()), "copies": copied_share(samples, train)}

    shape = Shape(side * side, side, size((32 * box) * scale, 3 if box == 2 else 5, (side, side)), 0.5)
    known = {"solved_by_a_training_grid": completed_share(train, repeated, given)}
    return Task(train, held_out, shape, measure, puzzles=(repeated, given), known=known)


def completed_share(grids: torch.Tensor, puzzles: torch.Tensor, given: torch.Tensor) -> float:
    """Share of puzzles that one of some grids [N, L] agrees with wherever a cell is given, [M, L]."""
    agree = [
        bool(((grids == puzzle) | ~shown).all(1).any()) for puzzle, shown in zip(puzzles, given, strict=True)
    ]
    return sum(agree) / len(agree)


def potts(scale: int, evaluator: Evaluator) -> Task:
    """A ring of four spins of three colours: its law is known."""
    law = laws.potts_ring()

    def measure(samples: torch.Tensor) -> Measures:
        return {
            "total_variation": laws.total_variation(samples, law),
            "of_exact_samples": laws.expected_variation(law, len(samples)),
        }

    shape = Shape(law.dim(), law.shape[0], size(32, 3))
    train, held_out = laws.draw(law, 50_000, 0), laws.draw(law, 16_384, 1)
    # 256 exact samples would be 0.17 from the law of 81 sequences.
    return Task(train, held_out, shape, measure, samples_factor=64)


MAKERS: dict[str, Callable[[int, Evaluator], Task]] = {
    "digits": digits,
    "digits-noisy": lambda scale, evaluator: digits(scale, evaluator, damaged=0.05),
    "pydoc-char": lambda scale, evaluator: pydoc(scale, evaluator, "char"),
    "pydoc-bpe": lambda scale, evaluator: pydoc(scale, evaluator, "bpe:512"),
    "sudoku-4": lambda scale, evaluator: sudoku(scale, evaluator, 2),
    "sudoku-9": lambda scale, evaluator: sudoku(scale, evaluator, 3),
    "potts": potts,
}
