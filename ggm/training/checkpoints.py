"""Checkpoints that are complete or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import reprlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from ggm.config import ConfigError
from ggm.data.images.tokenizers import IMAGES, WEIGHTS, ImageTokenizer
from ggm.data.text import TOKENIZER as TOKENIZER
from ggm.digests import check_digests, write_digests
from ggm.extras import require
from ggm.files import read_json
from ggm.hub import AVERAGED, CONFIG, TRAINING, read_weights, write_weights
from ggm.model import GGM
from ggm.model_config import GGMConfig

PROGRESS = "progress.json"
# Noise of a step has a coordinate of 32 bits.
MAX_STEP = 2**31 - 1
_OPTIMIZER = "optimizer.pt"
_NAME = re.compile(r"step-(\d+)")
# What torch raises for files that are cut short, and for contents that are not of the optimiser.
_DAMAGED = (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class TrainingState:
    """All that a step of training changes.

    Attributes
    ----------
    model : GGM
        Weights as the optimiser left them.
    averaged : AveragedModel
        Their average.
    optimizer : torch.optim.Optimizer
        Moments and counts.
    step : int
        Steps made.
    seconds : float
        Training time so far.
    """

    model: GGM
    averaged: AveragedModel
    optimizer: Any
    step: int = 0
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run: folders ``step-N``, each of them a folder of `GGM.from_pretrained`.

    Parameters
    ----------
    folder : Path
        Where they are; made with the first one.
    keep : int
        How many to keep: older ones are removed.

    Notes
    -----
    A folder holds config.json, model.safetensors (averaged weights), training.safetensors (the
    others), optimizer.pt, progress.json, tokenizer.json if the data are text, and images.json if they
    are images, with a folder vq/ if a network draws them; digests.json tells the SHA-256 of each. A
    name that begins with a dot is of no use to anyone: it is what a killed process left.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> Path | None:
        """Path of the last checkpoint, or None."""
        found = _complete(self._folder)
        return found[-1] if found else None

    def save(self, state: TrainingState, tokenizer: Any = None, images: ImageTokenizer | None = None) -> Path:
        """Write a checkpoint, unless that of this step is there; then remove the oldest.

        Returns
        -------
        Path
            Its folder.

        Raises
        ------
        OSError
            If it cannot be written. Those that were there are as they were.
        """
        final = self._folder / f"step-{state.step:09d}"
        if final.exists():
            return final
        aside = self._folder / f".{final.name}-{os.getpid()}"
        try:
            aside.mkdir(parents=True)
            _write(aside, state, tokenizer)
            if images is not None:
                images.save(aside)
            write_digests(aside)
            for path in (*aside.rglob("*"), aside):
                _flush(path)
            aside.rename(final)
            _flush(self._folder)
        except (OSError, RuntimeError, require("safetensors", extra="train").SafetensorError) as error:
            # torch and safetensors tell of a full disk by errors of their own.
            shutil.rmtree(aside, ignore_errors=True)
            good = self.latest() or "none"
            raise OSError(
                f"{final}: the checkpoint could not be written: {error}; last good one: {good}"
            ) from error
        self._clean()
        return final

    def _clean(self) -> None:
        for old in _complete(self._folder)[: -self._keep]:
            self._remove(old)
        for left in self._folder.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint such that no half of it is ever taken for one."""
        aside = folder.with_name(f".{folder.name}-removed-{os.getpid()}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def find(path: Path) -> Path:
    """Folder of a checkpoint: the path itself, or the last checkpoint of a run that it is of.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if (path / CONFIG).is_file():
        return path
    found = _complete(path / "checkpoints")
    if not found:
        raise FileNotFoundError(f"{path}: neither a folder with {CONFIG} nor that of a run with checkpoints")
    return found[-1]


def read_config(folder: Path) -> GGMConfig:
    """Configuration of the model of a checkpoint.

    Raises
    ------
    OSError, ValueError
        If the file is missing or damaged.
    """
    try:
        return GGMConfig.from_dict(read_json(folder / CONFIG))
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error


def read_progress(folder: Path) -> tuple[int, float]:
    """Steps and seconds of training that a checkpoint holds.

    Raises
    ------
    OSError, ValueError
        If the file is missing or damaged.
    """
    path = folder / PROGRESS
    values = read_json(path)
    step, seconds = values.get("step"), values.get("seconds")
    got = reprlib.repr(values)
    # bool is an int, and JSON as Python reads it has NaN.
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= MAX_STEP:
        raise ValueError(f"{path}: got {got}; allowed: step, an integer from 1 to {MAX_STEP}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"{path}: got {got}; allowed: seconds, a finite number from 0")
    named = _NAME.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise ValueError(f"{path}: got step {step}; allowed: {int(named[1])}, that of the folder")
    return step, seconds


def check_files(folder: Path, *, weights: bool = True) -> bool:
    """Check that the files of a checkpoint are those that were written.

    Parameters
    ----------
    folder : Path
        The checkpoint.
    weights : bool
        Whether weights and moments are checked, too: `GGM.from_pretrained` checks those that it reads.

    Returns
    -------
    bool
        Whether the checkpoint holds digests. One of an earlier version does not, and nothing is checked.

    Raises
    ------
    OSError, ValueError
        If a file is missing, or another one.
    """
    network = (path for path in (folder / WEIGHTS).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in network]
    large = (AVERAGED, TRAINING, _OPTIMIZER) if weights else ()
    return check_digests(folder, (CONFIG, PROGRESS, TOKENIZER, IMAGES, *large, *names))


def restore(state: TrainingState, folder: Path) -> None:
    """Bring a fresh state to where a checkpoint was written.

    Raises
    ------
    ConfigError
        If the checkpoint is of another model.
    OSError, ValueError
        If a file is missing or damaged.
    """
    saved = read_json(folder / CONFIG)
    _same_model(saved, json.loads(json.dumps(state.model.config.to_dict())), folder)
    read_weights(state.model, folder / TRAINING)
    read_weights(state.averaged.module, folder / AVERAGED)
    try:
        moments = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(moments)
    except _DAMAGED as error:
        raise ValueError(f"{folder / _OPTIMIZER}: damaged, or not of this model") from error
    state.step, state.seconds = read_progress(folder)
    # 0 would make the average start anew.
    state.averaged.n_averaged.fill_(state.step)


def _write(folder: Path, state: TrainingState, tokenizer: Any) -> None:
    averaged = state.averaged.module
    assert isinstance(averaged, GGM)
    averaged.save_pretrained(folder)
    write_weights(state.model, folder / TRAINING)
    torch.save(state.optimizer.state_dict(), folder / _OPTIMIZER)
    (folder / PROGRESS).write_text(json.dumps({"step": state.step, "seconds": state.seconds}))
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same_model(saved: dict[str, Any], wanted: dict[str, Any], folder: Path, where: str = "model") -> None:
    for key in sorted({*saved, *wanted}):
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _same_model(old, new, folder, f"{where}.{key}")
        elif old != new:
            # A law of the noise may have many numbers.
            got, allowed = reprlib.repr(new), reprlib.repr(old)
            raise ConfigError(
                f"{where}.{key}: got {got}; allowed: {allowed}, that of the checkpoint {folder}"
            )
