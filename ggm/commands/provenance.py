"""Records of samples (seed, precision, cost, versions), as JSON files beside them."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ggm_kernels
from ggm.files import read_json, write_text
from ggm.processes import ALONE, Processes
from ggm.training.checkpoints import PROGRESS, read_progress

if TYPE_CHECKING:
    from ggm.commands.checkpoint import Checkpoint
    from ggm.commands.drawing import GenerateConfig
    from ggm.sampling.stepwise import SampleResult

_PACKAGES = ("torch", "transformers", "torchmetrics")
# A smaller number of bits would be a lower temperature in disguise: results must name it.
DRAWS = {"scores": "float32", "random_bits": 32}
# What every result tells of its samples; null where it is not known.
KEYS = (
    "checkpoint",
    "step",
    "seed",
    "precision",
    "network_evaluations",
    "network_evaluations_per_sample",
    "site_updates",
    "seconds",
    "site_updates_per_second",
    "config",
    "vocab_size",
    "device",
    "processes",
    "versions",
)


def versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None for those that are not installed."""
    found: dict[str, str | None] = {"ggm_kernels": ggm_kernels.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def of_samples(
    result: SampleResult, config: GenerateConfig, checkpoint: Checkpoint, processes: Processes = ALONE
) -> dict[str, Any]:
    """Record of samples that a checkpoint gave.

    Parameters
    ----------
    result : SampleResult
        What `ggm.commands.drawing.sample` or `fill` returned.
    config : GenerateConfig
        How it was called.
    checkpoint : Checkpoint
        What it was drawn from.
    processes : Processes
        Who drew.

    Returns
    -------
    dict
        The `KEYS`. `network_evaluations` counts passes of one batch each;
        `network_evaluations_per_sample` those that each sample took part in.
    """
    model, folder = checkpoint.model, checkpoint.folder
    weights = model.backbone.head_bias
    batches = math.ceil(config.count / config.batch)
    return {
        "checkpoint": str(folder),
        "step": _step(folder),
        "seed": config.seed,
        "precision": {
            "network": str(weights.dtype).removeprefix("torch."),
            "matmul": torch.get_float32_matmul_precision(),
            **DRAWS,
        },
        "network_evaluations": result.network_evaluations,
        "network_evaluations_per_sample": result.network_evaluations / batches,
        "site_updates": result.site_updates,
        "seconds": result.seconds,
        "site_updates_per_second": result.site_updates_per_second,
        "config": dataclasses.asdict(config),
        "vocab_size": model.config.vocab_size,
        "device": str(weights.device),
        "processes": processes.count,
        "versions": versions(),
    }


def sidecar(path: Path) -> Path:
    """Name of the record beside a file of samples: ``samples.npy.meta.json`` for ``samples.npy``."""
    return path.with_name(f"{path.name}.meta.json")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record of samples beside their file."""
    write_text(sidecar(path), to_json(record) + "\n")


def to_json(values: Any) -> str:
    """Indented JSON; a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_finite(values), indent=2, allow_nan=False, default=str)


def read_record(path: Path) -> dict[str, Any]:
    """Record of a JSON file, with null for every one of `KEYS` that it lacks.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is not an object of JSON.
    """
    return {**unknown(), **read_json(path)}


def unknown() -> dict[str, Any]:
    """Record of samples of which nothing is known."""
    return dict.fromkeys(KEYS)


def _step(checkpoint: Path) -> int | None:
    return read_progress(checkpoint)[0] if (checkpoint / PROGRESS).is_file() else None


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
