"""``ggm score`` and ``ggm evaluate``: their options, and what they do."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ggm.commands import generate, provenance
from ggm.commands.devices import check_device
from ggm.commands.report import give, result
from ggm.commands.run_images import RunImages
from ggm.data.images.files import FolderImages
from ggm.data.images.tokenizers import VQTokenizer
from ggm.data.sources import Data, load_data, source_file
from ggm.evaluation.held_out import HeldOutConfig, held_out
from ggm.evaluation.images import ImageSet, grid_images, picture_images, shape_of
from ggm.evaluation.mauve import MauveConfig
from ggm.evaluation.perplexity import DTYPES, PerplexityConfig
from ggm.evaluation.samples import TXT_CUTS, ImageShape, ReadConfig, Samples, read_samples
from ggm.evaluation.scoring import UNITS, ScoreConfig, Scoring
from ggm.training.checkpoints import find
from ggm.training.config import RUN_CONFIG, RunConfig, read_config

SCORE = """\
Score samples of any system, and print the results as JSON.

    ggm score samples.jsonl --model gpt2-large
    ggm score images.npy --grid 8,8 --levels 4 --reference training.npy
    ggm score samples/ --reference photographs/ --fid-network inception.pt

FILE is one of
  .jsonl  a line of JSON per sample: its text under "text" (--column names another key), its tokens, if
          known, under "tokens"
  .txt    texts between empty lines, as `ggm sample` writes them; --txt line: a sample per line;
          --txt file: the file is one sample
  .npy    integers [N, L]: tokens, which --tokenizer turns into text and --grid into images
  a folder of images: .png, .jpg, .jpeg or .webp, at any depth; --reference names another, of real ones

What sampled them stands in the result under "sampling": from FILE.meta.json, which `ggm sample` writes, or
from --meta; null where it is not known. docs/evaluation.md says what every number means."""

EVALUATE = """\
Draw samples from a checkpoint, score them as `ggm score` does, look at held-out data, print all as JSON.

    ggm evaluate outputs/pydoc-char --count 256 --model gpt2-large

Held-out data are those of the run: the folder of `ggm train` tells which; for a checkpoint that was moved,
--data CONFIG names the YAML file. They are scored as the samples are, to compare with, and the model's losses
on them and the calibration sum_a exp g are given at several chain times.
Images, drawn by the VQModel that the checkpoint holds if it is one of such tokens, are compared with the
first training images unless --reference names others."""


def add_score(command: argparse.ArgumentParser) -> None:
    """Add the options of ``ggm score``."""
    command.add_argument(
        "file", type=Path, metavar="FILE", help="samples: .jsonl, .txt, .npy or a folder of images"
    )
    command.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="pixels of a side that images of folders get (default: the shorter side of the first one)",
    )
    command.add_argument(
        "--tokenizer", metavar="T", help="tokenizer.json, or name on the Hub, that turns tokens into text"
    )
    command.add_argument(
        "--meta", type=Path, metavar="FILE", help="JSON that tells seed, precision, .. of the sampling"
    )
    _add_metrics(command)
    command.add_argument(
        "--device", default="cpu", help="of the language model or network (default: %(default)s)"
    )


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the options of ``ggm evaluate`` to those of drawing samples."""
    command.set_defaults(count=64)
    command.add_argument(
        "--data", type=Path, metavar="CONFIG", help="YAML file of a run with these data (default: its own)"
    )
    command.add_argument("--no-held-out", action="store_true", help="do not look at data of the run")
    command.add_argument(
        "--times", type=int, default=8, metavar="N", help="chain times of the losses (default: %(default)s)"
    )
    command.add_argument(
        "--reference-count",
        type=int,
        default=10_000,
        metavar="N",
        help="training images to compare with, at most (default: %(default)s)",
    )
    command.add_argument(
        "--save-samples",
        type=Path,
        metavar="PATH",
        help="keep them, as `ggm sample --out PATH` writes them, and PATH.meta.json",
    )
    _add_metrics(command)


def _add_metrics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write the JSON there, and print the main numbers"
    )
    command.add_argument(
        "--model",
        metavar="LM",
        help="generative perplexity under this causal language model: a folder, or a name on the Hub",
    )
    command.add_argument(
        "--precision", choices=DTYPES, default="fp32", help="of the language model (default: %(default)s)"
    )
    command.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a sample that the language model reads (default: all that it can)",
    )
    command.add_argument(
        "--start-token",
        action="store_true",
        help="put the model's start token before every sample: its first token is scored, too",
    )
    command.add_argument(
        "--score-batch", type=int, default=8, metavar="N", help="samples at a time (default: %(default)s)"
    )
    command.add_argument(
        "--unit",
        choices=UNITS,
        help="of entropy and distinct-n (default: tokens of --model, else the samples' own, else words)",
    )
    command.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="real data: texts for MAUVE (needs mauve-text), a folder of images or tokens for the distances",
    )
    command.add_argument(
        "--mauve-model",
        default=MauveConfig.model,
        metavar="M",
        help="what gives MAUVE's features (default: %(default)s)",
    )
    command.add_argument(
        "--grid", metavar="H,W[,C]", help="samples are images, row by row, channels (1 or 3) together"
    )
    command.add_argument(
        "--levels",
        type=int,
        metavar="N",
        help="brightness levels of images (default: the vocabulary, or 256)",
    )
    command.add_argument(
        "--fid-network",
        type=Path,
        metavar="FILE",
        help="FID with this network: TorchScript, or .pt2 of torch.export; uint8 [B, 3, H, W] to [B, D]",
    )
    command.add_argument(
        "--column", default="text", metavar="KEY", help="of text in .jsonl (default: %(default)s)"
    )
    command.add_argument(
        "--txt",
        choices=TXT_CUTS,
        default="paragraph",
        help="what one sample is in a .txt (default: %(default)s)",
    )


def run_score(options: argparse.Namespace) -> None:
    """Do what ``ggm score`` does."""
    started = time.perf_counter()
    check_device(options.device)
    _check_out(options.out)
    sampling = _sampling_record(options)
    image = _score_shape(options, sampling.get("vocab_size"))
    reading = ReadConfig(options.column, options.txt, options.tokenizer)
    samples = _read(options.file, reading, image, str(options.file))
    reference = None
    if options.reference is not None:
        reference = _read(options.reference, reading, image, "--reference")
    progress = sys.stderr.isatty()
    scoring = Scoring(_score_config(options, image), reference, progress=progress)
    metrics = scoring.score(samples, str(options.file), progress=progress)
    metrics["samples"] = {"file": str(options.file), **metrics["samples"]}
    give(options.out, result("score", options, sampling, metrics, started))


def run_evaluate(
    options: argparse.Namespace, checkpoint: generate.Checkpoint, config: generate.GenerateConfig
) -> None:
    """Do what ``ggm evaluate`` does with a checkpoint that is open."""
    started = time.perf_counter()
    _check_out(options.out)
    generate.check_output(options.save_samples, checkpoint, "--save-samples")
    folder, model = find(options.checkpoint), checkpoint.model
    looking = HeldOutConfig(config.sampling.sites_per_step, options.times, config.seed, config.batch)
    run = _run_of(options, folder)
    data = None if run is None else _data(run, checkpoint, _run_file(options, folder))
    images = _run_images(options, checkpoint, run, data)
    reference = _reference(options, images)
    progress = sys.stderr.isatty()
    shape = None if images is None else images.shape
    scoring = Scoring(_score_config(options, shape), reference, progress=progress)

    drawn = generate.sample(model, config, progress=progress)
    sampling = provenance.of_samples(drawn, config, model, folder)
    if options.save_samples is not None:
        generate.write_samples(options.save_samples, drawn.tokens, checkpoint)
        provenance.write_record(options.save_samples, sampling)
    if images is None:
        samples: Samples | ImageSet = Samples(generate.texts(checkpoint, drawn.tokens), drawn.tokens)
    else:
        samples = images.of_tokens(drawn.tokens, "the samples")
    metrics = scoring.score(samples, "the samples", progress=progress)
    metrics["held_out"] = None
    if data is not None:
        # As many, where there are: most metrics depend on the number.
        rows = data.held_out[: len(samples)]
        real: Samples | ImageSet = Samples(generate.texts(checkpoint, rows), rows)
        if images is not None:
            real = images.held_out(len(rows))
        metrics["held_out"] = {
            **held_out(model, data.held_out, looking),
            "scores": scoring.score(real, "held-out data", progress=progress),
        }
    give(options.out, result("evaluate", options, sampling, metrics, started))


def _check_out(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {path.parent}")


def _sampling_record(options: argparse.Namespace) -> dict[str, Any]:
    """What is known of the sampling of FILE."""
    beside = provenance.sidecar(options.file)
    if options.meta is not None:
        return provenance.read_record(options.meta)
    return provenance.read_record(beside) if beside.is_file() else provenance.unknown()


def _score_config(options: argparse.Namespace, image: ImageShape | None) -> ScoreConfig:
    perplexity = None
    if options.model is not None:
        perplexity = PerplexityConfig(
            options.model,
            options.precision,
            options.device,
            options.score_batch,
            options.max_length,
            options.start_token,
        )
    mauve = MauveConfig(options.mauve_model, device=options.device, batch=options.score_batch)
    return ScoreConfig(
        perplexity, mauve, image, options.fid_network, options.unit, options.device, options.score_batch
    )


def _score_shape(options: argparse.Namespace, vocab_size: int | None) -> ImageShape | None:
    """Shape of samples that are images: what --grid tells, or what those of a folder are brought to."""
    if not options.file.is_dir():
        if options.size is not None:
            raise ValueError(f"--size: got {options.size} without a folder of images; allowed: with one")
        return _grid(options, vocab_size)
    if options.grid is not None or options.levels is not None:
        raise ValueError("--grid, --levels: got them for a folder of images; allowed: --size")
    if options.reference is None:
        raise ValueError(f"--reference: got none for the folder {options.file}; allowed: one of real images")
    if options.size is not None and options.size < 1:
        raise ValueError(f"--size: got {options.size}; allowed: 1 or more")
    size = options.size or min(FolderImages(options.file).open(0).size)
    return ImageShape(size, size, 3)


def _read(path: Path, reading: ReadConfig, image: ImageShape | None, source: str) -> Samples | ImageSet:
    """Samples or real data of a file, or of a folder of images."""
    if not path.is_dir():
        samples = read_samples(path, reading)
        return samples if image is None else grid_images(samples, image, source)
    if image is None:
        raise ValueError(f"{source}: got the folder {path}; allowed for text: .jsonl, .txt")
    pictures = FolderImages(path)
    return picture_images(pictures, torch.arange(len(pictures)), image)


def _run_images(
    options: argparse.Namespace, checkpoint: generate.Checkpoint, run: RunConfig | None, data: Data | None
) -> RunImages | None:
    """How the model's sequences are images; None if they are not, or there is nothing to compare with."""
    tokenizer = checkpoint.images or (None if data is None else data.images)
    grid = _grid(options, checkpoint.model.config.vocab_size)
    if grid is not None:
        if isinstance(tokenizer, VQTokenizer):
            raise ValueError("--grid: got it for tokens of a VQModel; allowed: without, they are decoded")
        return RunImages(grid, None, run, data)
    if tokenizer is None or (data is None and options.reference is None and options.fid_network is None):
        return None
    return RunImages(shape_of(tokenizer), tokenizer, run, data)


def _grid(options: argparse.Namespace, vocab_size: int | None) -> ImageShape | None:
    """Shape that --grid tells."""
    if options.grid is None:
        if options.levels is not None:
            raise ValueError(f"--levels: got {options.levels} without --grid; allowed: with it")
        return None
    try:
        extents = [int(word) for word in options.grid.split(",")]
    except ValueError:
        extents = []
    if len(extents) not in (2, 3):
        raise ValueError(f"--grid: got {options.grid!r}; allowed: H,W or H,W,C")
    height, width, channels = [*extents, 1][:3]
    return ImageShape(height, width, channels, options.levels or vocab_size or 256)


def _run_file(options: argparse.Namespace, folder: Path) -> Path:
    return options.data or folder.parent.parent / RUN_CONFIG


def _run_of(options: argparse.Namespace, folder: Path) -> RunConfig | None:
    """Configuration of the run that a checkpoint is of."""
    if options.no_held_out:
        return None
    path = _run_file(options, folder)
    if path.is_file():
        return read_config(path)
    if options.data is not None:
        raise FileNotFoundError(f"--data: there is no file {path}")
    print(
        f"ggm: no held-out data: there is no {path}; --data CONFIG names a file of the run", file=sys.stderr
    )
    return None


def _data(run: RunConfig, checkpoint: generate.Checkpoint, path: Path) -> Data:
    """Data of a run, whose configuration `path` holds."""
    config = checkpoint.model.config
    file = source_file(run.data)
    if file is not None and run.data_file is not None:
        run.data_file.check(file, path)
    data = load_data(run.data, config.chain.length, checkpoint.tokenizer, checkpoint.images)
    if file is None and data.file is not None and run.data_file is not None:
        run.data_file.check(data.file, path)
    if data.vocab_size != config.vocab_size:
        raise ValueError(
            f"data: got {data.vocab_size} tokens; allowed: {config.vocab_size}, the vocabulary of the model"
        )
    return data


def _reference(options: argparse.Namespace, images: RunImages | None) -> Samples | ImageSet | None:
    """Real data of --reference; for images otherwise those of the training."""
    if options.reference_count < 2:
        raise ValueError(f"--reference-count: got {options.reference_count}; allowed: 2 or more")
    if options.reference is not None:
        shape = None if images is None else images.shape
        return _read(options.reference, ReadConfig(options.column, options.txt), shape, "--reference")
    return None if images is None else images.training(options.reference_count)
