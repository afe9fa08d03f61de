"""Samples drawn on the way, to see a run learn: texts, and pictures side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ggm.data.images import pictures
from ggm.data.sources import Data
from ggm.data.text import decode
from ggm.files import replacing
from ggm.model import GGM
from ggm.sampling.config import SamplingConfig

# In the folder of a run: pictures of samples.
SAMPLES = "samples"
# A sweep is drawn in so few groups, however long the sequences are: a look, not the sampler's best.
_GROUPS = 16


@dataclass(frozen=True)
class Preview:
    """Samples of a step as they are told.

    Attributes
    ----------
    lines : list of str
        Texts, or tokens in figures; empty for images.
    picture : torch.Tensor or None
        For images, all of them side by side: uint8 [H, W, C].
    """

    lines: list[str]
    picture: torch.Tensor | None = None

    def write(self, out: Path, step: int) -> dict[str, Any]:
        """Write a picture into the folder of a run; returns what metrics.jsonl is to tell."""
        if self.picture is None:
            return {"samples": self.lines}
        path = out / SAMPLES / f"step-{step:09d}.png"
        with replacing(path) as aside:
            pictures.write_picture(aside, self.picture)
        return {"samples": f"{SAMPLES}/{path.name}"}

    def track(self, accelerator: Any, step: int) -> None:
        """Hand the samples to the trackers of a run."""
        if self.picture is None:
            # TensorBoard reads it as Markdown: code keeps what the text is made of.
            accelerator.log({"samples": "\n\n".join(map(_code, self.lines))}, step=step)
            return
        for tracker in accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": self.picture[None].numpy()}, step=step, **options)


def _code(text: str) -> str:
    """Text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def draw(model: GGM, data: Data, count: int) -> Preview | None:
    """Samples of a model, the same noise every time, so that the same samples get better.

    Parameters
    ----------
    model : GGM
        With averaged weights; all processes call this if each holds a part of it.
    data : Data
        What its tokens mean.
    count : int
        How many.

    Returns
    -------
    Preview or None
        None if `count` is 0, or they are pictures and Pillow is not installed.
    """
    if count == 0 or (data.images is not None and find_spec("PIL") is None):
        return None
    length = model.chain.length
    sites = max(model.config.least_sites, math.ceil(length / _GROUPS))
    ids = torch.arange(count, device=model.backbone.head_bias.device)
    tokens = model.sample(count, SamplingConfig(sites_per_step=sites), seed=0, sample_ids=ids).tokens
    if data.images is not None:
        return Preview([], pictures.grid(data.images.decode(tokens)))
    rows = tokens.tolist()
    if data.tokenizer is None:
        return Preview([" ".join(map(str, row)) for row in rows])
    return Preview([decode(data.tokenizer, row) for row in rows])
