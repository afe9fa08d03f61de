"""The YAML file of `ggm train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ggm.chain import ChainConfig
from ggm.config import ConfigError, build, read_yaml
from ggm.data.sources import DataConfig, PydocData
from ggm.digests import FileState
from ggm.extras import require
from ggm.files import write_text
from ggm.model_config import GGMConfig
from ggm.training.in_memory import TrainingConfig

# In the folder of a run: what it was started with.
RUN_CONFIG = "config.yaml"


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
        Law of the noise: "uniform", or "unigram", the frequencies of the training data's tokens
        (`ggm.data.unigram`): noise that is harder to tell from data. model.noise_probs gives another law.
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
        Steps between looks at the loss and at held-out data.
    tracker : str
        "tensorboard" (if it is installed), "wandb" or "none". metrics.jsonl is always written.
    data_file : FileState, optional
        Size and SHA-256 of the file that data are read from, or of the tokens of images: another one is
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
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    data_file: FileState | None = None

    def __post_init__(self) -> None:
        for name in ("accumulation", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed: 1 or more")
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
    values = read_yaml(path, overrides)
    model = values.get("model")
    if isinstance(model, dict):
        if "vocab_size" in model:
            raise ConfigError("model.vocab_size: got a value; allowed: none, the data decide it")
        model["vocab_size"] = 1
    return build(RunConfig, values)


def write_config(config: RunConfig, path: Path) -> None:
    """Write a run, with all that its file left to defaults, as a file that `read_config` reads."""
    values = dataclasses.asdict(config)
    del values["model"]["vocab_size"]
    text = require("yaml", extra="train").safe_dump(values, sort_keys=False)
    write_text(path, text)


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
        before = read_config(path)
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
