"""`ggm info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm.commands.flags import Flags


@dataclass(frozen=True)
class InfoOptions:
    """Tell what a checkpoint holds: model, vocabulary, training so far.

    Attributes
    ----------
    checkpoint : Path
        Folder of a checkpoint or a run.
    """

    checkpoint: Path


FLAGS = (Flags(InfoOptions),)


def run(options: argparse.Namespace) -> None:
    """Print a line for each thing."""
    from ggm.commands.checkpoint import Checkpoint
    from ggm.training.checkpoints import PROGRESS, Checkpoints, read_progress
    from ggm.training.config import RUN_CONFIG
    from ggm.training.metrics import read_metrics

    checkpoint = Checkpoint.open(options.checkpoint)
    folder, model = checkpoint.folder, checkpoint.model
    config, run_folder = model.config, folder.parent.parent
    told: dict[str, Any] = {
        "checkpoint": folder,
        "network": f"{_network(config)}, {sum(p.numel() for p in model.parameters())} parameters",
        "tokens": f"vocabulary {config.vocab_size} ({_kind(checkpoint)}), sequences of {model.chain.length}",
        "chain": f"{model.chain.sweeps} sweeps, T = {model.chain.steps}",
        "noise": "uniform" if config.noise_probs is None else f"{len(config.noise_probs)} probabilities",
        "objective": config.objective,
        "backbone": config.backbone,
    }
    if (folder / PROGRESS).is_file():
        step, seconds = read_progress(folder)
        told["training"] = f"{step} steps in {seconds:.0f} s"
        lines = [line for line in read_metrics(run_folder / "metrics.jsonl") if line["step"] <= step]
        looks = [line for line in lines if "held_out_loss" in line]
        if looks:
            last = looks[-1]
            names = {"loss": "held_out_loss", "calibration": "calibration"}
            known = [f"{name} {last[key]:.4f}" for name, key in names.items() if key in last]
            told["held out"] = ", ".join(known)
    best = Checkpoints(run_folder / "checkpoints", keep=1).best()
    if best is not None:
        told["best"] = f"{best}: step {read_progress(best)[0]}"
    if (run_folder / RUN_CONFIG).is_file():
        told["run"] = run_folder / RUN_CONFIG
    for name, value in told.items():
        print(f"{name:12}{value}")


def _network(config: Any) -> str:
    kind: str = config.backbone.kind
    return kind if config.predicts == "state" else f"{kind}, predicts {config.predicts}"


def _kind(checkpoint: Any) -> str:
    if checkpoint.tokenizer is not None:
        return "text"
    return "no tokenizer" if checkpoint.images is None else type(checkpoint.images).__name__
