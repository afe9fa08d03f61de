"""Configuration of a training: budget and optimiser, and the YAML file of `ggm train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggm.chain import ChainConfig
from ggm.config import ConfigError, allow, build, read_yaml
from ggm.data.sources import DataConfig, PydocData
from ggm.digests import FileState
from ggm.extras import require
from ggm.files import write_text
from ggm.model_config import GGMConfig
from ggm_kernels.randomness import MAX_SEED

# In the folder of a run: what it was started with.
RUN_CONFIG = "config.yaml"
# What is beside it there.
_BESIDE = ("metrics.jsonl", "checkpoints")


@dataclass(frozen=True)
class TrainingConfig:
    """A training run, which ends when either budget is spent.

    Attributes
    ----------
    seconds : float
        Budget of wall-clock time.
    steps : int or None
        Budget of optimiser steps; None is no limit. Runs that end by steps alone are reproducible.
    batch_size : int
        Sequences per step.
    learning_rate : float
        Peak.
    final_share : float
        Learning rate at the end, relative to the peak: 0 to 1.
    warmup : float
        Share of the run in which the learning rate rises: 0 to 1.
    betas : tuple of float
        Of AdamW, each from 0 to below 1.
    weight_decay : float
        Of AdamW, for matrices only.
    clip : float
        Largest norm of the gradient; infinity does not clip.
    ema_decay : float
        Decay of the averaged weights per step, from 0 to below 1; at first it is less
        (`ggm.training.average.decay_at`).
    seed : int
        Key of data order, chain times and noise: 0 to 2**64 - 1.
    """

    seconds: float = math.inf
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    final_share: float = 0.01
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and math.isinf(self.seconds):
            raise ValueError("seconds, steps: got no budget; allowed: at least one of them finite")
        for name in ("seconds", "learning_rate", "clip"):
            allow(self, name, getattr(self, name) > 0, "above 0")  # NaN is not
        allow(self, "learning_rate", self.learning_rate < math.inf, "above 0, finite")
        allow(self, "weight_decay", 0.0 <= self.weight_decay < math.inf, "0 or more, finite")
        for name in ("final_share", "warmup"):
            allow(self, name, 0.0 <= getattr(self, name) <= 1.0, "0 to 1")
        allow(self, "ema_decay", 0.0 <= self.ema_decay < 1.0, "0 or more, below 1")
        allow(self, "betas", all(0.0 <= beta < 1.0 for beta in self.betas), "0 or more, below 1")
        allow(self, "seed", 0 <= self.seed < MAX_SEED, "0 to 2**64 - 1")
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            allow(self, name, value is None or value >= 1, "1 or more")


@dataclass(frozen=True)
class RunConfig:
    """A training run.

    Attributes
    ----------
    out : str
        Folder for checkpoints and metrics.
    data : DataConfig
        What to learn.
    model : GGMConfig
        The model. Its vocab_size is that of the data, and is not given.
    noise : str
        Distribution of the noise: "uniform", or "unigram", the frequencies of the training data's tokens
        (`ggm.data.unigram`): noise that is harder to tell from data. model.noise_probs gives another one.
    training : TrainingConfig
        Budget and optimiser. Its seed is that of the weights, too; its batch_size is over all
        processes.
    precision : str
        "fp32", or "bf16": autocast to bfloat16.
    sharding : str
        How several processes hold the model: "none", each the whole of it (DDP), or "fsdp2", each a
        part of its weights, averages and moments. Checkpoints and the loss curve are the same.
        ``accelerate launch --use_fsdp --fsdp_version 2`` means "fsdp2", too.
    accumulation : int
        Parts in which each process computes its share of a batch, to save memory.
    checkpoint_every : int
        Steps between checkpoints. There is one at the end, too.
    keep_checkpoints : int
        How many to keep.
    log_every : int
        Steps between looks at the loss and at held-out data. The first step is looked at, too.
    samples : int
        How many samples are drawn with every checkpoint, to be looked at (`ggm.training.previews`).
    tracker : str
        "tensorboard" (if it is installed), "wandb" or "none". metrics.jsonl is always written.
    data_file : FileState, optional
        Size and SHA-256 of the files that data are read from, or of the tokens of images: others are
        refused. A run writes it into its own file.
    """

    out: str
    data: DataConfig = field(default_factory=PydocData)
    model: GGMConfig = field(default_factory=lambda: GGMConfig(1, ChainConfig(64)))
    noise: Literal["uniform", "unigram"] = "uniform"
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=1000))
    precision: Literal["fp32", "bf16"] = "fp32"
    sharding: Literal["none", "fsdp2"] = "none"
    accumulation: int = 1
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    samples: int = 9
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    data_file: FileState | None = None

    def __post_init__(self) -> None:
        for name in ("accumulation", "checkpoint_every", "keep_checkpoints", "log_every"):
            allow(self, name, getattr(self, name) >= 1, "1 or more")
        allow(self, "samples", self.samples >= 0, "0 or more")
        if self.noise == "unigram" and self.model.noise_probs is not None:
            raise ValueError("noise: got 'unigram' with model.noise_probs; allowed: one of them")


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Run of a YAML file.

    Parameters
    ----------
    path : Path
        The file.
    overrides : sequence of str
        As in `ggm.config.read_yaml`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ConfigError
        If a key or a value is not allowed.
    """
    return _build(read_yaml(path, overrides))


def read_written(path: Path) -> RunConfig:
    """Run of a file that `write_config` wrote, in this version or an earlier one.

    Raises
    ------
    OSError, ConfigError
        As `read_config`.
    """
    values = read_yaml(path)
    data = values.get("data")
    if isinstance(data, dict) and data.get("kind") in ("text", "pydoc", "tokens"):
        data.setdefault("held_out_by", "first")  # before there was a choice
    return _build(values)


def read_of_run(path: Path) -> RunConfig:
    """Run of a file that `write_config` wrote into its folder, or of one that somebody else wrote.

    Raises
    ------
    OSError, ConfigError
        As `read_config`.
    """
    real = path.resolve()
    in_run = real.name == RUN_CONFIG and any((real.parent / name).exists() for name in _BESIDE)
    return read_written(path) if in_run or "data_file" in read_yaml(path) else read_config(path)


def _build(values: dict[str, Any]) -> RunConfig:
    model = values.get("model")
    if isinstance(model, dict):
        if "vocab_size" in model:
            raise ConfigError("model.vocab_size: got a value; allowed: none, the data decide it")
        model["vocab_size"] = 1
    return build(RunConfig, values)


def to_yaml(config: RunConfig) -> str:
    """A run, with all that its file left to defaults, as a file that `read_config` reads."""
    values = dataclasses.asdict(config)
    del values["model"]["vocab_size"]
    return require("yaml", extra="train").safe_dump(values, sort_keys=False)


def write_config(config: RunConfig, path: Path) -> None:
    """Write the file of `to_yaml`."""
    write_text(path, to_yaml(config))


def check_same_curve(config: RunConfig, path: Path) -> RunConfig | None:
    """Check that a run which goes on learns from the same sequences in the same order as before.

    Parameters
    ----------
    config : RunConfig
        The run as it is to go on.
    path : Path
        The file of `write_config` that its first part left; without one nothing is checked.

    Returns
    -------
    RunConfig or None
        What the file tells.

    Raises
    ------
    ConfigError
        If data, seed or batch size are others. What the model and its noise are, its checkpoint knows;
        budget, optimiser, precision and processes may change.
    """
    if not path.is_file():
        return None
    try:
        before = read_written(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    old, new = _of_the_curve(before), _of_the_curve(config)
    for key in new:
        if old.get(key) != new[key]:
            raise ConfigError(
                f"{key}: got {new[key]!r}; allowed: {old.get(key)!r}, that of the run to go on with ({path})"
            )
    return before


def _of_the_curve(config: RunConfig) -> dict[str, object]:
    """Values that decide which sequences a step sees, and their noise; the kind of data first."""
    data = dataclasses.asdict(config.data)
    data.pop("cache", None)  # where tokens of images are kept
    values = {"data.kind": data.pop("kind"), **{f"data.{key}": value for key, value in data.items()}}
    training = config.training
    seeds = {"training.batch_size": training.batch_size, "training.seed": training.seed}
    return {**values, **seeds}
