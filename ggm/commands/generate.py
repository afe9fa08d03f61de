"""`ggm sample` and `ggm infill`: what a checkpoint has learnt, as text, pictures or tokens."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from ggm.data.images import pictures
from ggm.data.images import tokenizers as image_tokenizers
from ggm.data.images.masks import show_hole
from ggm.data.text import decode, encode, read_tokenizer
from ggm.extras import require
from ggm.files import filling, replacing
from ggm.model import GGM
from ggm.sampling.config import SamplingConfig
from ggm.sampling.stepwise import SampleResult
from ggm.training.checkpoints import TOKENIZER, check_files, find, read_config

# Pictures that a network decodes at a time.
_DECODED = 16


@dataclass(frozen=True)
class Checkpoint:
    """A model, and its vocabulary if it is one of text or of images."""

    model: GGM
    tokenizer: Any
    images: image_tokenizers.ImageTokenizer | None = None

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> Checkpoint:
        """Read the averaged weights of a checkpoint, or of the last one of a run.

        Raises
        ------
        OSError, ValueError
            If there is none, or its files do not belong together.
        """
        folder = find(path)
        check_files(folder, weights=False)
        read_config(folder)  # to tell what is wrong with it, which the library below does not
        model = GGM.from_pretrained(folder, map_location=device)
        tokenizer = read_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
        if tokenizer is not None and tokenizer.get_vocab_size() != model.config.vocab_size:
            raise ValueError(
                f"{folder / TOKENIZER}: got {tokenizer.get_vocab_size()} tokens; "
                f"allowed: {model.config.vocab_size}, the vocabulary of the model"
            )
        images = image_tokenizers.read_tokenizer(folder, device)
        if images is not None:
            _check_images(images, model, folder / image_tokenizers.IMAGES)
        return cls(model, tokenizer, images)


@dataclass(frozen=True)
class GenerateConfig:
    """How to draw.

    Attributes
    ----------
    count : int
        Samples.
    sampling : SamplingConfig
        How the reverse process is run.
    seed : int
        Same seed, same samples, whatever `batch`.
    batch : int
        Samples at a time.
    """

    count: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise ValueError(f"--count, --batch: got {self.count}, {self.batch}; allowed: 1 or more")


@dataclass(frozen=True)
class Given:
    """What there is of a sequence: tokens, int64 [L], and which of them stay, bool [L]."""

    tokens: torch.Tensor
    frozen: torch.Tensor


def sample(model: GGM, config: GenerateConfig, *, progress: bool = False) -> SampleResult:
    """Draw sequences, int64 [count, L] on the CPU, and sum up what the batches cost."""

    def draw(ids: torch.Tensor) -> SampleResult:
        return model.sample(len(ids), config.sampling, seed=config.seed, sample_ids=ids, progress=progress)

    return _in_batches(draw, config, model)


def infill(
    checkpoint: Checkpoint, text: str, gap: str, config: GenerateConfig, *, progress: bool = False
) -> SampleResult:
    """Fill the gaps of a text.

    Parameters
    ----------
    checkpoint : Checkpoint
        A model of text.
    text : str
        What is there, and `gap` for every token that is not: with a vocabulary of characters, for
        every character. What the model's length leaves after it is drawn, too, and not returned.
    gap : str
        One character.
    config : GenerateConfig
        How to draw.

    Returns
    -------
    SampleResult
        Tokens of filled texts, int64 [count, tokens of the text] on the CPU (`texts` decodes them), and
        what they cost.

    Raises
    ------
    ValueError
        If the model is not one of text, the text is too long, has no gap or holds unknown characters.
    """
    if checkpoint.tokenizer is None:
        raise ValueError("--text: this checkpoint holds no vocabulary of text")
    if len(gap) != 1:
        raise ValueError(f"--gap: got {gap!r}; allowed: one character")
    model, length = checkpoint.model, checkpoint.model.chain.length
    given: list[int | None] = []
    try:
        for part in re.split(f"({re.escape(gap)}+)", text):
            given += [None] * len(part) if part.startswith(gap) else encode(checkpoint.tokenizer, part)
    except ValueError as error:
        raise ValueError(f"--text: {error}") from error
    if None not in given:
        raise ValueError(f"--text: got no gap, {gap!r}, in it; allowed: one or more (--gap tells of which)")
    if not 1 <= len(given) <= length:
        raise ValueError(f"--text: got {len(given)} tokens; allowed: 1 to {length}")
    rest = [None] * (length - len(given))
    frozen = torch.tensor([token is not None for token in [*given, *rest]])
    tokens = torch.tensor([token or 0 for token in [*given, *rest]])
    result = fill(model, Given(tokens, frozen), config, progress=progress)
    return dataclasses.replace(result, tokens=result.tokens[:, : len(given)])


def fill(model: GGM, given: Given, config: GenerateConfig, *, progress: bool = False) -> SampleResult:
    """Draw what is not frozen, int64 [count, L] on the CPU, and sum up what the batches cost."""

    def draw(ids: torch.Tensor) -> SampleResult:
        return model.infill(
            given.tokens.to(ids.device).expand(len(ids), -1),
            given.frozen.to(ids.device).expand(len(ids), -1),
            config.sampling,
            seed=config.seed,
            sample_ids=ids,
            progress=progress,
        )

    return _in_batches(draw, config, model)


def texts(checkpoint: Checkpoint, tokens: torch.Tensor) -> list[str] | None:
    """Texts of tokens [N, L]; None if the model is not one of text."""
    if checkpoint.tokenizer is None:
        return None
    return [decode(checkpoint.tokenizer, row) for row in tokens.tolist()]


def check_output(path: Path | None, checkpoint: Checkpoint, option: str = "--out") -> None:
    """Check that samples can be written where an option says, before the work is done.

    Raises
    ------
    ValueError
        If the ending is not one that the model's kind of samples has.
    FileNotFoundError
        If its folder is not there.
    MissingExtraError
        If pictures are asked for and Pillow is not installed.
    """
    if path is None:
        return
    endings = [".npy", ".jsonl"]
    if checkpoint.tokenizer is not None:
        endings.append(".txt")
    if checkpoint.images is not None:
        endings.append(".png")
    ending = _ending(path)
    if ending not in (endings if checkpoint.images is None else [*endings, ""]):
        folders = "" if checkpoint.images is None else ", or a folder"
        raise ValueError(
            f"{option}: got {path.name!r}; allowed here: names that end in {', '.join(endings)}{folders}"
        )
    if path.name in ("", ".."):  # records and grids are named after it
        raise ValueError(f"{option}: got '{path}'; allowed: a path that ends in a name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{option}: no permission to write into {path.parent}")
    if ending == "" and path.is_file():
        raise FileExistsError(f"{option}: {path} is a file; allowed: a folder, or a new name")
    if ending in ("", ".png"):
        require("PIL", extra="images")


def write_samples(
    path: Path, tokens: torch.Tensor, checkpoint: Checkpoint, given: Given | None = None
) -> None:
    """Write samples as the ending of the path says.

    Parameters
    ----------
    path : Path
        .npy: array of tokens. .jsonl: a line for each, with its text if it has one. .txt: texts
        between empty lines. .png: pictures side by side. None: a folder, made if it is not there,
        with a file for each, and beside it, as `ggm.data.images.pictures.grid_beside` names it, the
        same as .png.
    tokens : torch.Tensor
        int64 [N, L].
    checkpoint : Checkpoint
        What they are of.
    given : Given, optional
        Of images that were filled in: comes first among pictures side by side.
    """
    if _ending(path) == ".npy":
        with replacing(path) as aside, aside.open("wb") as file:
            numpy.save(file, tokens.numpy())
    elif _ending(path) in (".png", ""):
        _write_pictures(path, tokens, checkpoint, given)
    else:
        with replacing(path) as aside:
            aside.write_text(_lines(path, tokens, texts(checkpoint, tokens)), encoding="utf-8")


def _ending(path: Path) -> str:
    """Ending of a file's name, none for a folder."""
    return "" if path.is_dir() else path.suffix


def _lines(path: Path, tokens: torch.Tensor, texts: list[str] | None) -> str:
    if path.suffix != ".jsonl":
        return "\n\n".join(texts or []) + "\n"
    rows = [{"tokens": row} for row in tokens.tolist()]
    lines = [{**row, "text": text} for row, text in zip(rows, texts, strict=True)] if texts else rows
    return "".join(json.dumps(line) + "\n" for line in lines)


def _write_pictures(path: Path, tokens: torch.Tensor, checkpoint: Checkpoint, given: Given | None) -> None:
    images = checkpoint.images
    assert images is not None
    pixels = torch.cat([images.decode(part) for part in tokens.split(_DECODED)])
    shown = pixels
    if given is not None:
        shown = torch.cat([show_hole(images, images.decode(given.tokens[None]), given.frozen), pixels])
    if _ending(path) == "":
        with filling(path) as aside:
            pictures.write_pictures(aside, pixels)
        path = pictures.grid_beside(path)
    with replacing(path) as aside:
        pictures.write_grid(aside, shown)


def _check_images(images: image_tokenizers.ImageTokenizer, model: GGM, path: Path) -> None:
    rows, columns = images.grid
    if (images.vocab_size, rows * columns) != (model.config.vocab_size, model.chain.length):
        raise ValueError(
            f"{path}: got {images.vocab_size} tokens on a grid of {rows} x {columns}; allowed: "
            f"{model.config.vocab_size} tokens, {model.chain.length} positions, those of the model"
        )


def _in_batches(
    draw: Callable[[torch.Tensor], SampleResult], config: GenerateConfig, model: GGM
) -> SampleResult:
    """Results of all batches of sample ids as one; its tokens on the CPU."""
    ids = torch.arange(config.count, device=model.backbone.head_bias.device)
    parts = [draw(batch) for batch in ids.split(config.batch)]
    return SampleResult(
        torch.cat([part.tokens.cpu() for part in parts]),
        sum(part.network_evaluations for part in parts),
        sum(part.site_updates for part in parts),
        sum(part.seconds for part in parts),
    )
