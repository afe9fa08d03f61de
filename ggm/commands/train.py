"""`ggm train`: train the model that a YAML file describes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggm.commands.flags import Flags
from ggm.progress import say

if TYPE_CHECKING:
    from ggm.training.config import RunConfig


@dataclass(frozen=True)
class TrainOptions:
    """Train the model that a YAML file describes; configs/ holds some.

    Writes into the folder `out` of the file: checkpoints/step-N (the last few, each complete and usable by
    `ggm sample` and by GGM.from_pretrained) and checkpoints/best, metrics.jsonl (a line per step; `ggm plot`
    draws it), samples/ for images, tensorboard/ if tensorboard is installed. SIGTERM and Ctrl-C save a
    checkpoint and end the run; --resume continues it, after a kill or a power cut, too: at most the steps
    since the last checkpoint are lost, and the loss curve is that of a run that was never stopped.

    Several processes:  torchrun --nproc-per-node 8 -m ggm train CONFIG
                   or:  accelerate launch --multi_gpu --num_processes 8 -m ggm train CONFIG
    They train on the same batches with the same noise as one process. `sharding: fsdp2` spreads the model
    over them.

    Attributes
    ----------
    config : Path
        YAML file.
    overrides : list of str
        KEY=VALUE: replace a value of the file, as model.backbone.depth=2; may be given again.
    resume : bool
        Continue from the last checkpoint, if any.
    max_steps : int or None
        Stop after so many steps in all, with the learning rates of the whole run.
    print_config : bool
        Print all values of the run, the defaults among them, and do nothing else.
    dry_run : bool
        Load the data, make the model, compute one loss and tell of them, without anything written to the
        folder of the run. Images become tokens, which stay in data.cache for the run.
    quiet : bool
        No progress bar.
    """

    config: Path
    overrides: list[str] = field(default_factory=list)
    resume: bool = False
    max_steps: int | None = None
    print_config: bool = False
    dry_run: bool = False
    quiet: bool = False


FLAGS = (Flags(TrainOptions, names={"overrides": "set"}),)


def run(options: argparse.Namespace) -> None:
    """Train, or tell of what would be trained."""
    from ggm.training.config import read_config, to_yaml

    config = read_config(options.config, options.set)
    if options.print_config:
        print(to_yaml(config), end="")
    elif options.dry_run:
        _dry_run(config)
    else:
        _train(config, options)


def _train(config: RunConfig, options: argparse.Namespace) -> None:
    from ggm.training.run import run

    result = run(config, resume=options.resume, max_steps=options.max_steps, progress=not options.quiet)
    if result.is_main_process:
        stopped = f"stopped by {result.stopped_by}, --resume continues; " if result.stopped_by else ""
        say(f"{stopped}{result.steps} steps; checkpoint {result.checkpoint}", sys.stdout)


def _dry_run(config: RunConfig) -> None:
    import torch

    from ggm.data.batches import batches
    from ggm.data.sources import load_data
    from ggm.data.text import TokenStream
    from ggm.model import GGM
    from ggm.training.run import check_fit, check_packages, check_processes, configured_model

    check_packages(config)
    check_processes(config, 1)
    training, device = config.training, "cuda" if torch.cuda.is_available() else "cpu"
    data = load_data(config.data, config.model.chain.length, device=device)
    stream = isinstance(data.train, TokenStream)
    count = "a stream of" if stream else len(data.train)  # type: ignore[arg-type]
    print(
        f"data: {count} sequences of {config.model.chain.length} tokens, {len(data.held_out)} held out; "
        f"vocabulary {data.vocab_size}"
    )
    check_fit(config, data)
    torch.manual_seed(training.seed)
    model = GGM(configured_model(config, data)).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {config.model.backbone.kind}, {parameters} parameters; T = {model.chain.steps}")
    batch = next(batches(data.train, training.batch_size, seed=training.seed))
    ids, tokens = (values[: training.batch_size // config.accumulation].to(device) for values in batch)
    with torch.no_grad():
        loss = model.loss(tokens, training.seed, 0, ids)
        loss = loss / model.counted_share(training.seed, 0, ids)
    budget = f"{training.steps} steps" if training.steps is not None else f"{training.seconds:g} s"
    print(f"training: {budget} of {training.batch_size} sequences; loss at first {float(loss):.4f}")
