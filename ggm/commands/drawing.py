"""Drawing from a checkpoint: flags and batches of ``ggm sample | infill | evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggm.commands.flags import Flags
from ggm.processes import ALONE, Processes
from ggm.sampling.config import ReDenoise, SamplingConfig

if TYPE_CHECKING:
    import torch

    from ggm.commands.checkpoint import Checkpoint
    from ggm.model import GGM
    from ggm.sampling.stepwise import SampleResult


@dataclass(frozen=True)
class DrawingOptions:
    """What all commands that draw from a checkpoint take.

    Attributes
    ----------
    checkpoint : Path
        Folder of a checkpoint or a run.
    device : str
        Where: cpu, cuda, ..
    """

    checkpoint: Path
    device: str = "cpu"


@dataclass(frozen=True)
class GenerateConfig:
    """How to draw.

    Attributes
    ----------
    count : int
        Samples to draw.
    sampling : SamplingConfig
        How the reverse process is run.
    seed : int
        Same seed, same samples, whatever `batch`, to the rounding of the network.
    batch : int
        Samples drawn at a time.
    """

    count: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise ValueError(f"count, batch: got {self.count}, {self.batch}; allowed: 1 or more")


_LAW = ("temperature", "top_k", "top_p", "min_p")
_SAMPLING = Flags(
    SamplingConfig,
    [name for name in SamplingConfig.__dataclass_fields__ if name not in (*_LAW, "redenoise")],
    defaults={"sites_per_step": None},
    help={
        "sites_per_step": "Positions resampled together; 1 is exact, more is faster (default: the fewest "
        "that the model has learnt)"
    },
    title="the reverse process",
)
_REDENOISE = Flags(
    ReDenoise,
    names={"sweeps": "redenoise", "repeats": "redenoise-repeats"},
    defaults={"sweeps": None, "repeats": None},
    title="ReDeNoise",
)
_DRAW = Flags(
    SamplingConfig, _LAW, title="a draw: filters in this order; START:END from the first draws to the last"
)


def drawing_flags(count: int = 1) -> tuple[Flags, ...]:
    """Flags of how, and how many samples, are drawn."""
    drawn = Flags(GenerateConfig, ("count", "seed", "batch"), defaults={"count": count})
    return drawn, _SAMPLING, _REDENOISE, _DRAW


@dataclass(frozen=True)
class Given:
    """What there is of a sequence: tokens, int64 [L], and which of them stay, bool [L]."""

    tokens: torch.Tensor
    frozen: torch.Tensor


def open_checkpoint(options: argparse.Namespace, processes: Processes) -> tuple[Checkpoint, GenerateConfig]:
    """Checkpoint and configuration of parsed flags, for one of the processes that share out the samples.

    Raises
    ------
    OSError, ValueError
        If there is no such checkpoint, or its model cannot be drawn from like that.
    """
    from ggm.commands.checkpoint import Checkpoint
    from ggm.commands.devices import check_device

    options.device = processes.device(options.device)
    check_device(options.device)
    checkpoint = Checkpoint.open(options.checkpoint, options.device)
    config = drawing_flags()[0].make(options, sampling=_sampling(options, checkpoint.model))
    return checkpoint, config


def _sampling(options: argparse.Namespace, model: GGM) -> SamplingConfig:
    if options.event_driven:
        model.all_conditionals()  # or it raises
    if options.order != "chain":
        model.data_conditionals()
    sites, length, sweeps = options.sites_per_step, model.chain.length, options.redenoise
    sites = model.config.least_sites if sites is None else sites
    if not 1 <= sites <= length:
        raise ValueError(f"sites_per_step: got {sites}; allowed: 1 to {length}")
    if sweeps is not None and not 1 <= sweeps <= model.chain.sweeps:
        raise ValueError(f"sweeps: got {sweeps}; allowed: 1 to {model.chain.sweeps}")
    repeats = options.redenoise_repeats
    if repeats is not None and (sweeps is None or repeats < 1):
        raise ValueError(f"repeats: got {repeats}; allowed: with `sweeps`, 1 or more")
    redenoise = None if sweeps is None else ReDenoise(sweeps, repeats or 1)
    law = {name: getattr(options, name) for name in _LAW}
    return _SAMPLING.make(options, sites_per_step=sites, redenoise=redenoise, **law)


def sample(
    model: GGM, config: GenerateConfig, processes: Processes = ALONE, *, progress: bool = False
) -> SampleResult:
    """Draw sequences, int64 [count, L] on the CPU, and sum up what the batches cost."""

    def draw(ids: torch.Tensor) -> SampleResult:
        return model.sample(len(ids), config.sampling, seed=config.seed, sample_ids=ids, progress=progress)

    return _in_batches(draw, config, model, processes)


def fill(
    model: GGM,
    given: Given,
    config: GenerateConfig,
    processes: Processes = ALONE,
    *,
    progress: bool = False,
) -> SampleResult:
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

    return _in_batches(draw, config, model, processes)


def tell_cost(result: SampleResult) -> None:
    """Tell who watches what samples cost."""
    if sys.stderr.isatty():
        print(
            f"{result.network_evaluations} network evaluations, {result.site_updates_per_second:.3g} "
            f"site updates/s, {result.seconds:.1f} s",
            file=sys.stderr,
        )


def _in_batches(
    draw: Callable[[torch.Tensor], SampleResult], config: GenerateConfig, model: GGM, processes: Processes
) -> SampleResult:
    """Results of all batches of sample ids as one; its tokens on the CPU, its seconds those of the slowest.

    Whole batches are shared out, the ones that a process alone would draw: what is computed together
    stays together, and the results are the same to the bit.
    """
    import torch

    from ggm.sampling.stepwise import SampleResult

    ids = torch.arange(config.count, device=model.backbone.head_bias.device)

    def on_cpu(batch: torch.Tensor) -> SampleResult:
        part = draw(batch)
        return dataclasses.replace(part, tokens=part.tokens.cpu(), vocabulary=None)

    parts = processes.share_out(ids.split(config.batch), on_cpu)
    count = processes.count
    return SampleResult(
        torch.cat([part.tokens for part in parts]),
        sum(part.network_evaluations for part in parts),
        sum(part.site_updates for part in parts),
        max(sum(part.seconds for part in parts[rank::count]) for rank in range(count)),
    )
