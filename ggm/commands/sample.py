"""`ggm sample`: draw samples from a checkpoint."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ggm.commands.drawing import DrawingOptions, drawing_flags, open_checkpoint, sample, tell_cost
from ggm.commands.flags import Flags
from ggm.processes import Processes, started


@dataclass(frozen=True)
class SampleOptions(DrawingOptions):
    """Draw samples from a checkpoint.

    They are printed, as text where the model is one of text, as tokens otherwise, or written with --out.
    Images are written only.

    A sample depends on the seed and on its number only, not on --batch or --count, but for a network that
    rounds differently in batches of another size: a draw that is that close may then fall the other way.
    Several processes share out the batches, and what they write is that of one, to the bit:

        torchrun --nproc-per-node 8 -m ggm sample ..

    Attributes
    ----------
    out : Path or None
        Write them there: .npy (tokens), .jsonl (tokens and text), .txt (text), .png (images side by side), or
        a folder (images; PATH.grid.png shows them side by side); PATH.meta.json tells seed, precision, cost
        and versions.
    """

    out: Path | None = None


FLAGS = (Flags(SampleOptions), *drawing_flags())


def run(options: argparse.Namespace) -> None:
    """Draw, and print or write."""
    with started() as processes:
        _run(options, processes)


def _run(options: argparse.Namespace, processes: Processes) -> None:
    from ggm.commands import output, provenance

    checkpoint, config = open_checkpoint(options, processes)
    output.check_output(options.out, checkpoint, config.count)
    progress = processes.is_main and sys.stderr.isatty()
    result = sample(checkpoint.model, config, processes, progress=progress)
    if not processes.is_main:
        return
    tell_cost(result)
    if options.out is not None:
        output.write_samples(options.out, result.tokens, checkpoint)
        provenance.write_record(options.out, provenance.of_samples(result, config, checkpoint, processes))
        return
    rows = result.tokens.tolist()
    for line in checkpoint.texts(result.tokens) or (" ".join(map(str, row)) for row in rows):
        print(line)
