"""What a scoring gives: an object of JSON, and its main numbers in words."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggm.provenance import to_json, versions


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
        Record of the samples (`ggm.provenance`).
    metrics : dict
        Of `ggm.evaluation.scoring.Scoring.score`, and ``held_out``.
    started : float
        `time.perf_counter` when the command began.

    Returns
    -------
    dict
        Values that `ggm.provenance.to_json` writes.
    """
    call = {name: value for name, value in vars(options).items() if name != "run"}
    return {
        "command": command,
        "call": call,
        "sampling": sampling,
        **metrics,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
    }


def give(out: Path | None, values: dict[str, Any]) -> None:
    """Print a result, or write it to a file and print its main numbers."""
    text = to_json(values)
    if out is None:
        print(text)
        return
    out.write_text(text + "\n", encoding="utf-8")
    for line in _summary(values):
        print(line)


def _summary(metrics: dict[str, Any]) -> Iterator[str]:
    """The main numbers, for people."""
    samples, perplexity = metrics["samples"], metrics["generative_perplexity"]
    yield f"{samples['count']} samples of {samples['tokens']} tokens in all (unit: {samples['unit']})"
    if perplexity is not None:
        yield (
            f"generative perplexity {perplexity['mean_over_samples']:.5g} (mean over samples), "
            f"{perplexity['over_tokens']:.5g} (over tokens)"
        )
    entropy, distinct = metrics["unigram_entropy"], metrics["distinct"]
    if entropy["pooled"] is not None:
        shares = ", ".join(f"{n}: {share['pooled']:.3g}" for n, share in distinct.items() if share["pooled"])
        yield (
            f"unigram entropy {entropy['per_sample_mean']:.4g} nats (mean over samples), "
            f"{entropy['pooled']:.4g} (pooled); distinct-n {shares} (pooled)"
        )
    if metrics["mauve"] is not None:
        yield f"MAUVE {metrics['mauve']['value']:.4g}"
    if metrics["images"] is not None:
        yield from _image_lines(metrics["images"])
    if metrics.get("held_out") is not None:
        held = metrics["held_out"]
        yield (
            f"held-out loss {held['loss']:.5g}, cross-entropy {held['cross_entropy']:.5g} nats, "
            f"calibration {held['calibration']:.4g}"
        )


def _image_lines(images: dict[str, Any]) -> Iterator[str]:
    for name, row in (("samples", images), ("held-out images", images.get("held_out"))):
        if row is not None and row["pixel_frechet_distance"] is not None:
            fid = "" if row["fid"] is None else f"FID {row['fid']['value']:.4g}, "
            yield (
                f"{row['samples']} {name} against {row['reference_images']} images: {fid}"
                f"pixel Frechet distance {row['pixel_frechet_distance']:.4g}, "
                f"copies {row['copied_share']:.1%}"
            )
