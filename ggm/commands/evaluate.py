"""`ggm evaluate`: score samples of a checkpoint, and its losses on held-out data."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ggm.commands.drawing import DrawingOptions, drawing_flags, open_checkpoint, sample
from ggm.commands.flags import Flags
from ggm.commands.score import METRICS, MetricOptions, grid_shape, read, score_config
from ggm.evaluation.config import HeldOutConfig, ImageShape, LikelihoodConfig, ReadConfig
from ggm.processes import Processes, started

if TYPE_CHECKING:
    import torch

    from ggm.commands.checkpoint import Checkpoint
    from ggm.data.images.files import Images
    from ggm.data.images.tokenizers import ImageTokenizer
    from ggm.data.sources import Data
    from ggm.evaluation.images import ImageSet
    from ggm.evaluation.samples import Samples
    from ggm.training.config import RunConfig


@dataclass(frozen=True)
class EvaluateOptions(MetricOptions, DrawingOptions):
    """Score samples of a checkpoint, and its losses.

    Draws samples, scores them as `ggm score` does, looks at held-out data, and prints all as JSON.

        ggm evaluate outputs/pydoc-char --count 256 --model gpt2-large

    Held-out data are those of the run: the folder of `ggm train` tells which; for a checkpoint that was
    moved, --data CONFIG names the YAML file. They are scored as the samples are, to compare with. Beside
    that stand the likelihood bound of the model on them, and its losses and the calibration sum_a exp g at
    several chain times.
    Several processes share out batches of samples, of held-out data and of what the language model reads, and
    the result is that of one:  torchrun --nproc-per-node 8 -m ggm evaluate ..
    Images, drawn by the VQModel that the checkpoint holds if it is one of such tokens, are compared with the
    first training images unless --reference names others.

    Attributes
    ----------
    data : Path or None
        YAML file of a run with these data (default: its own).
    no_held_out : bool
        Do not look at data of the run.
    reference_count : int
        Training images to compare with, at most.
    save_samples : Path or None
        Keep them, as `ggm sample --out PATH` writes them, and PATH.meta.json.
    """

    data: Path | None = None
    no_held_out: bool = False
    reference_count: int = 10_000
    save_samples: Path | None = None


_HELD_OUT = Flags(HeldOutConfig, ("times",))
_LIKELIHOOD = Flags(LikelihoodConfig, ("times",), names={"times": "likelihood_times"})
FLAGS = (Flags(EvaluateOptions), *drawing_flags(count=64), _HELD_OUT, _LIKELIHOOD, *METRICS)


def run(options: argparse.Namespace) -> None:
    """Draw, score, look at held-out data, print or write."""
    with started() as processes:
        _run(options, processes)


def _run(options: argparse.Namespace, processes: Processes) -> None:
    from ggm.commands import output, provenance, report
    from ggm.evaluation.held_out import held_out
    from ggm.evaluation.likelihood import likelihood
    from ggm.evaluation.samples import Samples
    from ggm.evaluation.scoring import Scoring

    checkpoint, config = open_checkpoint(options, processes)
    started = time.perf_counter()
    report.check_out(options.out)
    output.check_output(options.save_samples, checkpoint, config.count, "--save-samples")
    model, sites = checkpoint.model, config.sampling.sites_per_step
    common = {"sites_per_step": sites, "seed": config.seed, "batch": config.batch}
    looking, bounding = _HELD_OUT.make(options, **common), _LIKELIHOOD.make(options, **common)
    run = _run_of(options, checkpoint.folder)
    data = None if run is None else _data(run, checkpoint, _run_file(options, checkpoint.folder))
    images = _run_images(options, checkpoint, run, data)
    reference = _reference(options, images)
    progress = processes.is_main and sys.stderr.isatty()
    shape = None if images is None else images.shape
    scoring = Scoring(score_config(options, shape), reference, processes, progress=progress)

    drawn = sample(model, config, processes, progress=progress)
    sampling = provenance.of_samples(drawn, config, checkpoint, processes)
    if options.save_samples is not None and processes.is_main:
        output.write_samples(options.save_samples, drawn.tokens, checkpoint)
        provenance.write_record(options.save_samples, sampling)
    if images is None:
        samples: Samples | ImageSet = Samples(checkpoint.texts(drawn.tokens), drawn.tokens)
    else:
        samples = images.of_tokens(drawn.tokens, "the samples")
    metrics = scoring.score(samples, "the samples", progress=progress)
    metrics |= {"likelihood": None, "held_out": None}
    if data is not None:
        metrics["likelihood"] = likelihood(model, data.held_out, bounding, processes)
        # As many, where there are: most metrics depend on the number.
        rows = data.held_out[: len(samples)]
        real: Samples | ImageSet = Samples(checkpoint.texts(rows), rows)
        if images is not None:
            real = images.held_out(len(rows))
        metrics["held_out"] = {
            **held_out(model, data.held_out, looking, processes),
            "scores": scoring.score(real, "held-out data", progress=progress),
        }
    if processes.is_main:
        report.give(options.out, report.result("evaluate", options, sampling, metrics, started))


def _run_images(
    options: argparse.Namespace, checkpoint: Checkpoint, run: RunConfig | None, data: Data | None
) -> RunImages | None:
    """How the model's sequences are images; None if they are not, or there is nothing to compare with."""
    from ggm.data.images.tokenizers import VQTokenizer
    from ggm.evaluation.images import shape_of

    tokenizer = checkpoint.images or (None if data is None else data.images)
    grid = grid_shape(options, checkpoint.model.config.vocab_size)
    if grid is not None:
        if isinstance(tokenizer, VQTokenizer):
            raise ValueError("grid: got it for tokens of a VQModel; allowed: without, they are decoded")
        return RunImages(grid, None, run, data)
    if tokenizer is None or (data is None and options.reference is None and options.fid_network is None):
        return None
    return RunImages(shape_of(tokenizer), tokenizer, run, data)


def _run_file(options: argparse.Namespace, folder: Path) -> Path:
    from ggm.training.config import RUN_CONFIG

    return options.data or folder.parent.parent / RUN_CONFIG


def _run_of(options: argparse.Namespace, folder: Path) -> RunConfig | None:
    """Configuration of the run that a checkpoint is of."""
    from ggm.training.config import read_of_run, read_written

    if options.no_held_out:
        return None
    path = _run_file(options, folder)
    if path.is_file():
        return read_written(path) if options.data is None else read_of_run(path)
    if options.data is not None:
        raise FileNotFoundError(f"data: there is no file {path}")
    print(
        f"ggm: no held-out data: there is no {path}; --data CONFIG names a file of the run", file=sys.stderr
    )
    return None


def _data(run: RunConfig, checkpoint: Checkpoint, path: Path) -> Data:
    """Data of a run, whose configuration `path` holds."""
    from ggm.data.sources import load_data, source_files
    from ggm.digests import Files

    config = checkpoint.model.config
    files = source_files(run.data)
    if files is not None and run.data_file is not None:
        run.data_file.check(files, path)
    data = load_data(run.data, config.chain.length, checkpoint.tokenizer, checkpoint.images)
    if files is None and data.file is not None and run.data_file is not None:
        run.data_file.check(Files.single(data.file), path)
    if data.vocab_size != config.vocab_size:
        raise ValueError(
            f"data: got {data.vocab_size} tokens; allowed: {config.vocab_size}, the vocabulary of the model"
        )
    return data


def _reference(options: argparse.Namespace, images: RunImages | None) -> Samples | ImageSet | None:
    """Real data of --reference; for images otherwise those of the training."""
    if options.reference_count < 2:
        raise ValueError(f"reference_count: got {options.reference_count}; allowed: 2 or more")
    if options.reference is not None:
        shape = None if images is None else images.shape
        return read(options.reference, ReadConfig(options.column, options.txt), shape, "reference")
    return None if images is None else images.training(options.reference_count)


@dataclass(frozen=True)
class RunImages:
    """How sequences of a model are images, and which images it was trained on.

    Attributes
    ----------
    shape : ImageShape
        Of the images.
    tokenizer : ImageTokenizer or None
        What decodes tokens; None if they are levels.
    run : RunConfig or None
        The run, if it is known.
    data : Data or None
        Its data.
    """

    shape: ImageShape
    tokenizer: ImageTokenizer | None
    run: RunConfig | None
    data: Data | None

    def of_tokens(self, tokens: torch.Tensor, source: str) -> ImageSet:
        """Images of tokens, int64 [N, L]."""
        from ggm.data.images.tokenizers import VQTokenizer
        from ggm.evaluation.images import decoded_images, grid_images
        from ggm.evaluation.samples import Samples

        if isinstance(self.tokenizer, VQTokenizer):
            return decoded_images(tokens, self.tokenizer)
        return grid_images(Samples(tokens=tokens), self.shape, source)

    def training(self, count: int) -> ImageSet | None:
        """The first `count` training images, or all; None if they are not known."""
        import torch

        from ggm.data.text import TokenStream

        if self.data is None or isinstance(self.data.train, TokenStream):
            return None
        rows = self.data.train[torch.arange(min(len(self.data.train), count))]
        return self._real(rows, len(self.data.held_out), "training data")

    def held_out(self, count: int) -> ImageSet:
        """The first `count` held-out images, or all; data must be known."""
        assert self.data is not None
        return self._real(self.data.held_out[:count], 0, "held-out data")

    def _real(self, rows: torch.Tensor, first: int, source: str) -> ImageSet:
        """Images of data: the pictures themselves where there are any, not what tokens keep of them."""
        from ggm.data.images.token_cache import picture_order
        from ggm.evaluation.images import picture_images

        if self._pictures is None:
            return self.of_tokens(rows, source)
        order = picture_order(len(self._pictures))[first : first + len(rows)]
        return picture_images(self._pictures, order, self.shape, rows)

    @cached_property
    def _pictures(self) -> Images | None:
        from ggm.data.images.files import open_images
        from ggm.data.sources import ImageData

        data = None if self.run is None else self.run.data
        if not isinstance(data, ImageData):
            return None
        return open_images(data.source, subset=data.subset, split=data.split, column=data.column)
