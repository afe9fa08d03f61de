"""Options of the commands that draw from a checkpoint: ``ggm sample | infill | evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm.commands.generate import Checkpoint, GenerateConfig
    from ggm.model import GGM
    from ggm.sampling.config import Ramp, SamplingConfig


def add_drawing(command: argparse.ArgumentParser) -> None:
    """Add the checkpoint, what to draw from it, and how."""
    command.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint or a run"
    )
    command.add_argument(
        "--count", type=int, default=1, metavar="N", help="samples to draw (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="same seed, same samples (default: %(default)s)"
    )
    command.add_argument(
        "--batch", type=int, default=64, metavar="N", help="samples drawn at a time (default: %(default)s)"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, .. (default: %(default)s)")
    _add_process(command.add_argument_group("the reverse process"))
    _add_law(command.add_argument_group("the law of a draw", "Filters are applied in this order."))


def _add_process(group: Any) -> None:
    group.add_argument(
        "--sites-per-step",
        type=int,
        metavar="K",
        help="positions resampled together; 1 is exact, more is faster (default: least that the model has "
        "learnt)",
    )
    group.add_argument(
        "--keep-or-replace", action="store_true", help="keep a token with the probability that it is data"
    )
    group.add_argument(
        "--event-driven",
        action="store_true",
        help="one evaluation of the network serves all steps up to the next token that changes; for hollow "
        "networks, with one site per step; few tokens change with --keep-or-replace",
    )
    group.add_argument(
        "--horizon",
        type=int,
        metavar="N",
        help="with --event-driven: steps that an evaluation serves at most; 1 is exact (default: up to the "
        "end of a sweep)",
    )
    group.add_argument(
        "--redenoise",
        type=int,
        metavar="S",
        help="noise the samples again by the first S sweeps of the chain, and denoise them",
    )
    group.add_argument(
        "--redenoise-repeats",
        type=int,
        metavar="N",
        help="with --redenoise: how many times (default: 1)",
    )
    group.add_argument(
        "--cuda-graph",
        action="store_true",
        help="record the operations of a step on the GPU once and replay them: the same samples; no ramps, "
        "not with --event-driven",
    )


def _add_law(group: Any) -> None:
    group.add_argument(
        "--temperature",
        type=_number_or_ramp,
        default=1.0,
        metavar="T",
        help="divides the logits; 0 takes the likeliest token; START:END goes from one at the first draws to "
        "the other at the last (default: %(default)g)",
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument(
        "--top-p",
        type=_number_or_ramp,
        metavar="P",
        help="draw from the likeliest tokens of this sum; or START:END",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="draw from tokens at least P times as likely as the likeliest",
    )


def _number_or_ramp(text: str) -> float | Ramp:
    """Number, or two with a colon between them."""
    from ggm.sampling.config import Ramp

    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number, or START:END")
    return numbers[0] if len(numbers) == 1 else Ramp(*numbers)


def open_checkpoint(options: argparse.Namespace) -> tuple[Checkpoint, GenerateConfig]:
    """Checkpoint and configuration of the options of `add_drawing`.

    Raises
    ------
    OSError, ValueError
        If there is no such checkpoint, or its model cannot be drawn from like that.
    """
    from ggm.commands import generate
    from ggm.commands.devices import check_device

    check_device(options.device)
    checkpoint = generate.Checkpoint.open(options.checkpoint, options.device)
    sampling = _sampling(options, checkpoint.model)
    return checkpoint, generate.GenerateConfig(options.count, sampling, options.seed, options.batch)


def _sampling(options: argparse.Namespace, model: GGM) -> SamplingConfig:
    from ggm.sampling.config import SamplingConfig
    from ggm.sampling.redenoise import ReDenoise

    if options.event_driven and model.config.backbone.kind != "hollow":
        raise ValueError(
            f"--event-driven: got a {model.config.backbone.kind} network; allowed: with a hollow one"
        )
    sites, length = options.sites_per_step, model.chain.length
    if sites is None:
        sites = model.config.least_sites
    if not 1 <= sites <= length:
        raise ValueError(f"--sites-per-step: got {sites}; allowed: 1 to {length}")
    sweeps, repeats = options.redenoise, options.redenoise_repeats
    if sweeps is not None and not 1 <= sweeps <= model.chain.sweeps:
        raise ValueError(f"--redenoise: got {sweeps}; allowed: 1 to {model.chain.sweeps}")
    if repeats is not None and (sweeps is None or repeats < 1):
        raise ValueError(f"--redenoise-repeats: got {repeats}; allowed: with --redenoise, 1 or more")
    try:
        return SamplingConfig(
            sites_per_step=sites,
            keep_or_replace=options.keep_or_replace,
            event_driven=options.event_driven,
            horizon=options.horizon,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            redenoise=None if sweeps is None else ReDenoise(sweeps, repeats or 1),
            cuda_graph=options.cuda_graph,
        )
    except ValueError as error:
        name, told = str(error).split(":", 1)
        raise ValueError(f"--{name.replace('_', '-')}:{told}") from error
