"""`ggm score`: score samples of any system; the flags of the metrics, which `ggm evaluate` has, too."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggm.commands.flags import Flags
from ggm.evaluation.config import (
    ImageShape,
    MauveConfig,
    PerplexityConfig,
    ReadConfig,
    ScoreConfig,
)

if TYPE_CHECKING:
    from ggm.evaluation.images import ImageSet
    from ggm.evaluation.samples import Samples


@dataclass(frozen=True)
class MetricOptions:
    """What commands that compute metrics take.

    Attributes
    ----------
    out : Path or None
        Write the JSON there, and print the main numbers.
    model : str or None
        Generative perplexity under this causal language model: a folder, or a name on the Hub.
    reference : Path or None
        Real data: texts for MAUVE (needs mauve-text), a folder of images or tokens for the distances.
    grid : str or None
        H,W or H,W,C: samples are images, row by row, channels (1 or 3) together.
    levels : int or None
        Brightness levels of images (default: the vocabulary, or 256).
    """

    out: Path | None = None
    model: str | None = None
    reference: Path | None = None
    grid: str | None = None
    levels: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(MetricOptions):
    """Score samples of any system, and print the results as JSON.

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

    What sampled them stands in the result under "sampling": from FILE.meta.json, which `ggm sample` writes,
    or from --meta; null where it is not known. docs/evaluation.md says what every number means.

    Attributes
    ----------
    file : Path
        Samples: .jsonl, .txt, .npy or a folder of images.
    size : int or None
        Pixels of a side that images of folders get (default: the shorter side of the first one).
    meta : Path or None
        JSON that tells seed, precision, .. of the sampling.
    device : str
        Of the language model or network.
    """

    file: Path
    size: int | None = None
    meta: Path | None = None
    device: str = "cpu"


_PERPLEXITY = Flags(
    PerplexityConfig,
    ("precision", "max_length", "start_token", "batch"),
    names={"batch": "score-batch"},
    title="language model",
)
_MAUVE = Flags(MauveConfig, ("model",), names={"model": "mauve-model"}, path="mauve")
_SCORE = Flags(
    ScoreConfig,
    ("unit", "fid_network"),
    words={"perplexity": "--model", "image": "--grid", "batch": "--score-batch"},
)
_READ = Flags(ReadConfig, ("column", "cut"), names={"cut": "txt"})
METRICS = (_SCORE, _READ, _PERPLEXITY, _MAUVE)
_TOKENIZER = Flags(ReadConfig, ("tokenizer",))
FLAGS = (Flags(ScoreOptions), _TOKENIZER, *METRICS)


def run(options: argparse.Namespace) -> None:
    """Read, score, print or write."""
    from ggm.commands import report
    from ggm.commands.devices import check_device
    from ggm.evaluation.scoring import Scoring

    started = time.perf_counter()
    check_device(options.device)
    report.check_out(options.out)
    sampling = _sampling_record(options)
    image = _shape(options, sampling.get("vocab_size"))
    reading = _READ.make(options, tokenizer=options.tokenizer)
    samples = read(options.file, reading, image, str(options.file))
    reference = None
    if options.reference is not None:
        reference = read(options.reference, reading, image, "reference")
    progress = sys.stderr.isatty()
    scoring = Scoring(score_config(options, image), reference, progress=progress)
    metrics = scoring.score(samples, str(options.file), progress=progress)
    metrics["samples"] = {"file": str(options.file), **metrics["samples"]}
    report.give(options.out, report.result("score", options, sampling, metrics, started))


def score_config(options: argparse.Namespace, image: ImageShape | None) -> ScoreConfig:
    """What is computed, by the flags of the metrics."""
    model, device, batch = options.model, options.device, options.score_batch
    perplexity = None if model is None else _PERPLEXITY.make(options, model=model, device=device)
    mauve = _MAUVE.make(options, device=device, batch=batch)
    parts = {"perplexity": perplexity, "mauve": mauve, "image": image}
    return _SCORE.make(options, **parts, device=device, batch=batch)


def read(path: Path, reading: ReadConfig, image: ImageShape | None, source: str) -> Samples | ImageSet:
    """Samples or real data of a file, or of a folder of images; messages call them `source`."""
    import torch

    from ggm.data.images.files import FolderImages
    from ggm.evaluation.images import grid_images, picture_images
    from ggm.evaluation.samples import read_samples

    if not path.is_dir():
        samples = read_samples(path, reading)
        return samples if image is None else grid_images(samples, image, source)
    if image is None:
        raise ValueError(f"{source}: got the folder {path}; allowed for text: .jsonl, .txt")
    pictures = FolderImages(path)
    return picture_images(pictures, torch.arange(len(pictures)), image)


def grid_shape(options: argparse.Namespace, vocab_size: int | None) -> ImageShape | None:
    """Shape of images that --grid tells."""
    if options.grid is None:
        if options.levels is not None:
            raise ValueError(f"levels: got {options.levels} without `grid`; allowed: with it")
        return None
    try:
        extents = [int(word) for word in options.grid.split(",")]
    except ValueError:
        extents = []
    if len(extents) not in (2, 3):
        raise ValueError(f"grid: got {options.grid!r}; allowed: H,W or H,W,C")
    (height, width, channels), levels = [*extents, 1][:3], options.levels
    return ImageShape(height, width, channels, vocab_size or 256 if levels is None else levels)


def _sampling_record(options: argparse.Namespace) -> dict[str, Any]:
    """What is known of the sampling of FILE."""
    from ggm.commands import provenance

    beside = provenance.sidecar(options.file)
    if options.meta is not None:
        return provenance.read_record(options.meta)
    return provenance.read_record(beside) if beside.is_file() else provenance.unknown()


def _shape(options: argparse.Namespace, vocab_size: int | None) -> ImageShape | None:
    """Shape of samples that are images: what --grid tells, or what those of a folder are brought to."""
    if not options.file.is_dir():
        if options.size is not None:
            raise ValueError(f"size: got {options.size} without a folder of images; allowed: with one")
        return grid_shape(options, vocab_size)
    if options.grid is not None or options.levels is not None:
        raise ValueError("grid, levels: got them for a folder of images; allowed: `size`")
    if options.reference is None:
        raise ValueError(f"reference: got none for the folder {options.file}; allowed: one of real images")
    if options.size is not None and options.size < 1:
        raise ValueError(f"size: got {options.size}; allowed: 1 or more")
    from ggm.data.images.files import FolderImages

    size = options.size or min(FolderImages(options.file).open(0).size)
    return ImageShape(size, size, 3)
