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
from ggm.data.images.pictures import write_picture
from ggm.data.images.tokenizers import IMAGES, WEIGHTS
from ggm.data.text import TOKENIZER as TOKENIZER
from ggm.data.vocabulary import Vocabulary
from ggm.digests import check_digests, file_names, write_digests
from ggm.extras import require
from ggm.files import read_json
from ggm.hub import AVERAGED, CONFIG, TRAINING, complete, read_weights, write_weights
from ggm.hub import find as find
from ggm.model import GGM
from ggm.model_card import PICTURE, Training
from ggm.model_config import GGMConfig
from ggm.training.optimizer import options_kept

PROGRESS = "progress.json"
# A link among the checkpoints of a run to the one whose loss on held-out data is least.
BEST = "best"
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

    @property
    def average(self) -> GGM:
        """Model of the averaged weights."""
        model = self.averaged.module
        assert isinstance(model, GGM)
        return model


class Checkpoints:
    """The checkpoints of a run: folders ``step-N``, each of them a folder of `GGM.from_pretrained`.

    ``best`` leads to the one of the least loss on held-out data.

    Parameters
    ----------
    folder : Path
        Where they are; made with the first one.
    keep : int
        How many to keep: older ones are removed, but for the best.

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
        found = complete(self._folder)
        return found[-1] if found else None

    def best(self) -> Path | None:
        """Path of the checkpoint of the least loss on held-out data, or None."""
        path = self._folder / BEST
        return path if (path / CONFIG).is_file() else None

    def save(
        self,
        state: TrainingState,
        vocabulary: Vocabulary | None = None,
        held_out_loss: float | None = None,
        trained: Training | None = None,
        picture: torch.Tensor | None = None,
    ) -> Path:
        """Write a checkpoint, unless that of this step is there; then remove the oldest.

        Parameters
        ----------
        state : TrainingState
            What it holds.
        vocabulary : Vocabulary, optional
            What the tokens mean.
        held_out_loss : float, optional
            What decides which checkpoint is the best.
        trained : Training, optional
            For the model card.
        picture : torch.Tensor, optional
            Samples, for the model card: uint8 [H, W, C].

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
            state.average.vocabulary, state.average.trained = vocabulary or Vocabulary(), trained
            state.average.save_pretrained(aside)
            write_weights(state.model, aside / TRAINING)
            torch.save(state.optimizer.state_dict(), aside / _OPTIMIZER)
            progress: dict[str, float] = {"step": state.step, "seconds": state.seconds}
            if held_out_loss is not None:
                progress["held_out_loss"] = held_out_loss
            (aside / PROGRESS).write_text(json.dumps(progress))
            if picture is not None:
                write_picture(aside / PICTURE, picture)
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
        self._choose(final, held_out_loss)
        self._clean()
        return final

    def _choose(self, new: Path, loss: float | None) -> None:
        """Lead the link to a new checkpoint if it is better than all before."""
        best = self.best()
        least = None if best is None else read_json(best / PROGRESS).get("held_out_loss")
        if loss is None or not math.isfinite(loss) or (least is not None and least <= loss):
            return
        aside = self._folder / f".{BEST}-{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(new.name, target_is_directory=True)
        if best is not None and not best.is_symlink():  # who copies a run may copy what links lead to
            self._remove(best)
        aside.replace(self._folder / BEST)
        _flush(self._folder)

    def _clean(self) -> None:
        best = self.best()
        for old in complete(self._folder)[: -self._keep]:
            if best is None or not best.samefile(old):
                self._remove(old)
        for left in (*self._folder.glob(".step-*"), *self._folder.glob(f".{BEST}-*")):
            if left.is_symlink():
                left.unlink()
            else:
                shutil.rmtree(left, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint such that no half of it is ever taken for one."""
        aside = folder.with_name(f".{folder.name}-removed-{os.getpid()}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


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
    large = (AVERAGED, TRAINING, _OPTIMIZER) if weights else ()
    return check_digests(folder, (CONFIG, PROGRESS, TOKENIZER, IMAGES, *large, *file_names(folder, WEIGHTS)))


def restore(state: TrainingState, folder: Path) -> None:
    """Bring a fresh state to where a checkpoint was written; the options of its optimiser are its own.

    Raises
    ------
    ConfigError
        If the checkpoint is of another model.
    OSError, ValueError
        If a file is missing or damaged.
    """
    # Both by way of their dataclass: an older checkpoint lacks keys that have come since.
    saved, wanted = (
        json.loads(json.dumps(config.to_dict())) for config in (read_config(folder), state.model.config)
    )
    _same_model(saved, wanted, folder)
    read_weights(state.model, folder / TRAINING)
    read_weights(state.average, folder / AVERAGED)
    try:
        moments = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        with options_kept(state.optimizer):
            state.optimizer.load_state_dict(moments)
    except _DAMAGED as error:
        raise ValueError(f"{folder / _OPTIMIZER}: damaged, or not of this model") from error
    state.step, state.seconds = read_progress(folder)
    # 0 would make the average start anew.
    state.averaged.n_averaged.fill_(state.step)


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
