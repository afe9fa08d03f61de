"""What is learnt: digits, characters, words of a vocabulary as long as GPT-2's; how samples are judged."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ggm import ChainConfig, GGMConfig, HollowConfig, ObjectiveConfig, SamplingConfig, TrainingConfig
from ggm.data.sources import DigitsData, PydocData, load_data
from ggm.data.text import bpe_tokenizer, decode, end_token, pack
from ggm.evaluation import frechet_distance

LENGTH = 64
WORDS_VOCABULARY = 50257


@dataclass(frozen=True)
class Sequences:
    """Tokens, int64 [N, L], and a number for how far samples are from the data: lower is better."""

    train: torch.Tensor
    held_out: torch.Tensor
    vocab_size: int
    distance: Callable[[torch.Tensor], float]


@dataclass(frozen=True)
class Problem:
    """A problem, the base that its rows change one thing of, and what is drawn to judge it.

    Attributes
    ----------
    title, distance : str
        For the page.
    load : callable
        The data.
    model : GGMConfig
        The base.
    training : TrainingConfig
        Its training, but for the seconds.
    sampling : SamplingConfig
        How samples are drawn.
    samples : int
        How many; 0 where nothing is drawn.
    times_seconds : float
        Its runs take so many times the seconds asked for.
    """

    title: str
    distance: str
    load: Callable[[], Sequences]
    model: GGMConfig
    training: TrainingConfig
    sampling: SamplingConfig
    samples: int
    times_seconds: float = 1.0


@cache
def digits() -> Sequences:
    """Handwritten digits in 4 grey levels."""
    data = load_data(DigitsData(), LENGTH)
    train = data.train[torch.arange(len(data.train))]  # type: ignore[arg-type]
    real = frechet_distance(data.held_out, train)
    return Sequences(train, data.held_out, 4, lambda samples: frechet_distance(samples, train) / real)


@cache
def characters() -> Sequences:
    """English of Python's help, by character."""
    data = load_data(PydocData(held_out=128), LENGTH)
    train = data.train[torch.arange(len(data.train))]  # type: ignore[arg-type]
    known = _words(data.tokenizer, train)

    def unknown_share(samples: torch.Tensor) -> float:
        found = _words(data.tokenizer, samples, whole=True)
        return sum(word not in known for word in found) / max(1, len(found))

    return Sequences(train, data.held_out, data.vocab_size, unknown_share)


def _words(tokenizer: Any, rows: torch.Tensor, whole: bool = False) -> set[str] | list[str]:
    """Words of three letters or more; with `whole` those alone that no edge of a sequence cuts, each time."""
    texts = [decode(tokenizer, row) for row in rows.tolist()]
    if not whole:
        return {word.lower() for word in re.findall("[A-Za-z]{3,}", " ".join(texts))}
    parts = [re.split("[^A-Za-z]", text)[1:-1] for text in texts]
    return [word.lower() for words in parts for word in words if len(word) >= 3]


@cache
def words() -> Sequences:
    """Docstrings of Python's library in byte pairs: the tokens that they are enough for, and unused ones."""
    texts = list(_docstrings())
    tokenizer = bpe_tokenizer(texts, WORDS_VOCABULARY)
    rows = torch.tensor(list(pack(tokenizer, texts, end_token(tokenizer, "<|endoftext|>"), LENGTH)))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return Sequences(rows[64:], rows[:64], WORDS_VOCABULARY, lambda _: float("nan"))


def _docstrings() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # samples of what cannot be read, for Python's own tests
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        found += [text for text in texts if text]
    return found


_HOLLOW = HollowConfig(width=64, depth=3, mixing=1, heads=4, mlp_ratio=2.0, positions="both", grid=(8, 8))
_BASE = {"masked_counts": (LENGTH,), "frozen_share": 0.25, "predicts": "data"}

PROBLEMS = {
    "digits": Problem(
        "Digits: 8 x 8 pixels, V = 4",
        "Frechet distance of 360 samples to the training digits, in that of held-out digits",
        digits,
        GGMConfig(4, ChainConfig(LENGTH, sweeps=4), _HOLLOW, ObjectiveConfig("cross_entropy"), **_BASE),
        TrainingConfig(seconds=1.0, batch_size=32, learning_rate=4e-3, ema_decay=0.99),
        SamplingConfig(sites_per_step=8),
        360,
    ),
    "characters": Problem(
        "Characters: English of Python's help, L = 64",
        "share of sampled words that the training text does not have",
        characters,
        GGMConfig(
            1,
            ChainConfig(LENGTH, sweeps=4),
            HollowConfig(width=64, depth=2, mixing=1, heads=4, mlp_ratio=2.0, positions="both"),
            ObjectiveConfig("cross_entropy"),
            **_BASE,
        ),
        # Small batches: steps are what a minute has too few of.
        TrainingConfig(seconds=1.0, batch_size=8, learning_rate=4e-3, ema_decay=0.99),
        SamplingConfig(sites_per_step=8),
        128,
    ),
    "words": Problem(
        "Words: docstrings of Python's library in byte pairs, V = 50257, L = 64",
        "",
        words,
        GGMConfig(
            1,
            ChainConfig(LENGTH, sweeps=4),
            HollowConfig(width=32, depth=2, mixing=1, heads=4, mlp_ratio=2.0, positions="both"),
            ObjectiveConfig("cross_entropy"),
            **_BASE,
        ),
        TrainingConfig(seconds=1.0, batch_size=8, learning_rate=5e-3, ema_decay=0.98),
        SamplingConfig(),
        0,
        times_seconds=3.0,
    ),
}
