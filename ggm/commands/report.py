"""Results of scoring: an object of JSON, and its main numbers in words."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggm.commands.provenance import to_json, versions
from ggm.files import check_replaceable, write_text

_UNITS = {
    "scorer": "tokens of the language model",
    "samples": "tokens of their own",
    "words": "words",
    "characters": "characters",
    "pixels": "numbers of pixels",
}


def result(
    command: str,
    options: argparse.Namespace,
    sampling: dict[str, Any],
    metrics: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    """Metrics with all that they depend on.

    Parameters
    ----------
    command : str
        Name of the command.
    options : argparse.Namespace
        Its options.
    sampling : dict
        Record of the samples (`ggm.commands.provenance`).
    metrics : dict
        Of `ggm.evaluation.scoring.Scoring.score`, and ``held_out``.
    started : float
        `time.perf_counter` when the command began.

    Returns
    -------
    dict
        Values that `ggm.commands.provenance.to_json` writes.
    """
    call = {name: value for name, value in vars(options).items() if name != "module"}
    return {
        "command": command,
        "call": call,
        "sampling": sampling,
        **metrics,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
    }


def check_out(path: Path | None) -> None:
    """Raise OSError if a result cannot be written there, before the work is done."""
    if path is not None:
        check_replaceable("out", path)


def give(out: Path | None, values: dict[str, Any]) -> None:
    """Print a result, or write it to a file and print its main numbers."""
    text = to_json(values)
    if out is None:
        print(text)
        return
    write_text(out, text + "\n")
    for line in _summary(values):
        print(line)


def _summary(values: dict[str, Any]) -> Iterator[str]:
    """The main numbers, for people."""
    yield from _score_lines(values, "samples")
    held_out = values.get("held_out")
    if held_out is not None:
        yield from _score_lines(held_out["scores"], "held-out sequences")
        yield (
            f"model on held-out data: loss {held_out['loss']:.5g}, "
            f"cross-entropy {held_out['cross_entropy']:.5g} nats, calibration {held_out['calibration']:.4g}"
        )
    bound = values.get("likelihood")
    if bound is not None:
        error = bound["standard_error"]
        spread = "" if error is None else f" +- {error:.2g}"
        yield (
            f"likelihood bound: {bound['nats_per_token']:.4g}{spread} nats per token, "
            f"{bound['bits_per_token']:.4g} bits, perplexity {bound['perplexity']:.4g}"
        )


def _score_lines(scores: dict[str, Any], name: str) -> Iterator[str]:
    counts, perplexity, entropy = (
        scores[key] for key in ("samples", "generative_perplexity", "unigram_entropy")
    )
    yield f"{counts['count']} {name}, {counts['tokens']} {_UNITS[counts['unit']]}"
    if perplexity is not None:
        yield (
            f"  generative perplexity {perplexity['mean_over_samples']:.5g} (mean over samples), "
            f"{perplexity['over_tokens']:.5g} (over tokens)"
        )
    if entropy is not None and entropy["pooled"] is not None:
        shares = [f"{share['pooled']:.3g}" for share in scores["distinct"].values() if share["pooled"]]
        yield (
            f"  unigram entropy {entropy['per_sample_mean']:.4g} nats (mean over samples), "
            f"{entropy['pooled']:.4g} (pooled); distinct 1-, 2-, 3-grams {', '.join(shares)} (pooled)"
        )
    if scores["mauve"] is not None:
        yield f"  MAUVE {scores['mauve']['value']:.4g}"
    images = scores["images"]
    if images is not None:
        told = ", ".join(_image_words(images))
        yield f"  against {images['reference_images']} images: {told or 'nothing to compare'}"


def _image_words(images: dict[str, Any]) -> Iterator[str]:
    if images["fid"] is not None and images["fid"]["value"] is not None:
        yield f"FID {images['fid']['value']:.4g}"
    if images["pixel_frechet_distance"] is not None:
        yield f"pixel Frechet distance {images['pixel_frechet_distance']:.4g}"
    if images["copied_share"] is not None:
        yield f"copies {images['copied_share']:.1%}"
