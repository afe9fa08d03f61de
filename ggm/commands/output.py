"""Files of samples: arrays, lines of JSON, text, pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import torch

from ggm.commands.checkpoint import Checkpoint
from ggm.commands.drawing import Given
from ggm.commands.provenance import sidecar
from ggm.data.images import pictures
from ggm.data.images.files import pictures_in
from ggm.data.images.masks import show_hole
from ggm.extras import require
from ggm.files import check_replaceable, filling, replacing

# Pictures that a network decodes at a time.
_DECODED = 16


def check_output(path: Path | None, checkpoint: Checkpoint, count: int, option: str = "--out") -> None:
    """Check that samples, `count` of them, can be written where an option says, before the work is done.

    Raises
    ------
    ValueError
        If the ending is not one that the model's kind of samples has.
    OSError
        If its folder is not there or cannot be written to, another file or folder is in the way, or a folder
        holds pictures that would not be written anew: whoever reads it takes them for samples.
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
    for beside in _beside(path):
        check_replaceable(option, beside)
    if ending == "":
        _check_folder(path, count, option)
    if ending in ("", ".png"):
        require("PIL", extra="images")


def _beside(path: Path) -> list[Path]:
    """Files that a call writes: samples, unless they are a folder of pictures, their grid, their record."""
    samples = path if _ending(path) else pictures.grid_beside(path)
    return [samples, sidecar(path)]


def _check_folder(folder: Path, count: int, option: str) -> None:
    """Check that a folder can hold so many pictures and no others."""
    if folder.is_file():
        raise FileExistsError(f"{option}: {folder} is a file; allowed: a folder, or a new name")
    if not folder.is_dir():
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: no permission to write into {folder}")
    written = {folder / pictures.name_of(number) for number in range(count)}
    others = [path.relative_to(folder) for path in pictures_in(folder) if path not in written]
    if others:
        raise FileExistsError(
            f"{option}: got {folder}, where {others[0]} would stay among the samples, one "
            f"of {len(others)} other pictures; allowed: a folder without any, or a new name"
        )


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
            aside.write_text(_lines(path, tokens, checkpoint.texts(tokens)), encoding="utf-8")


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
