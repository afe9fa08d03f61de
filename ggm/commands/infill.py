"""`ggm infill`: fill the gaps of a text or of an image."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggm.commands.drawing import (
    DrawingOptions,
    GenerateConfig,
    Given,
    drawing_flags,
    fill,
    open_checkpoint,
    tell_cost,
)
from ggm.commands.flags import Flags
from ggm.processes import ALONE, Processes, started

if TYPE_CHECKING:
    from ggm.commands.checkpoint import Checkpoint
    from ggm.sampling.stepwise import SampleResult


@dataclass(frozen=True)
class InfillOptions(DrawingOptions):
    """Fill the gaps of a text or of an image, which keeps all that is given.

        ggm infill outputs/pydoc-char --text 'The ______ statement' --count 4

    Every character of a gap is one token to be drawn: one character, if the vocabulary is one of characters.

        ggm infill outputs/digits --image digit.png --box 0,4,8,8 --count 8 --out infills.png

    The image is brought to the size of the model's: the shorter side resized, then the middle taken. Tokens
    that touch a white pixel of the mask, or the box, are drawn. Where a network makes tokens of pixels, those
    beside the hole were made with some of what was there in sight, and all pixels are drawn from tokens anew.

    Attributes
    ----------
    text : str or None
        Text with gaps.
    gap : str
        Character that stands for a gap.
    image : Path or None
        Image to be filled.
    mask : Path or None
        Image of the same size: white is to be drawn.
    box : str or None
        "x0,y0,x1,y1": box to be drawn, in pixels of the model's images, from the top left; x1 and y1 are
        outside.
    out : Path or None
        With --image: .png (side by side), a folder, .npy or .jsonl; PATH.meta.json tells seed, precision,
        cost and versions.
    """

    text: str | None = None
    gap: str = "_"
    image: Path | None = None
    mask: Path | None = None
    box: str | None = None
    out: Path | None = None


FLAGS = (Flags(InfillOptions), *drawing_flags())


def run(options: argparse.Namespace) -> None:
    """Fill gaps, and print or write."""
    _check(options)
    with started() as processes:
        _run(options, processes)


def _run(options: argparse.Namespace, processes: Processes) -> None:
    checkpoint, config = open_checkpoint(options, processes)
    if options.image is not None:
        _infill_image(checkpoint, config, options, processes)
        return
    progress = processes.is_main and sys.stderr.isatty()
    result = infill_text(checkpoint, options.text, options.gap, config, processes, progress=progress)
    if not processes.is_main:
        return
    tell_cost(result)
    for text in checkpoint.texts(result.tokens) or []:
        print(text)


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError unless the flags go together."""
    places = [name for name in ("mask", "box") if getattr(options, name) is not None]
    outputs = ["out"] if options.out is not None else []
    if (options.text is None) == (options.image is None):
        raise ValueError("text, image: got both or none; allowed: one of them")
    if len(places) > 1:
        raise ValueError("mask, box: got both; allowed: one of them")
    if options.image is None:
        if places or outputs:
            raise ValueError(f"{', '.join(places + outputs)}: got without `image`; allowed: with `image`")
        return
    wanted = " and ".join([*([] if outputs else ["`out`"]), *([] if places else ["`mask` or `box`"])])
    if wanted:
        raise ValueError(f"image: got it without {wanted}; allowed: with {wanted}")


def infill_text(
    checkpoint: Checkpoint,
    text: str,
    gap: str,
    config: GenerateConfig,
    processes: Processes = ALONE,
    *,
    progress: bool = False,
) -> SampleResult:
    """Fill the gaps of a text.

    Parameters
    ----------
    checkpoint : Checkpoint
        A model of text.
    text : str
        What is there, and `gap` for every token that is not: with a vocabulary of characters, for
        every character. What the model's length leaves after it is drawn, too, and not returned.
    gap : str
        One character.
    config : GenerateConfig
        How to draw.

    Returns
    -------
    SampleResult
        Tokens of filled texts, int64 [count, tokens of the text] on the CPU, and what they cost.

    Raises
    ------
    ValueError
        If the model is not one of text, the text is too long, has no gap or holds unknown characters.
    """
    given, length = given_text(checkpoint, text, gap)
    result = fill(checkpoint.model, given, config, processes, progress=progress)
    return dataclasses.replace(result, tokens=result.tokens[:, :length])


def given_text(checkpoint: Checkpoint, text: str, gap: str) -> tuple[Given, int]:
    """What a text with gaps gives of the model's sequence, and how many tokens it is long.

    Raises
    ------
    ValueError
        As `infill_text`.
    """
    import torch

    from ggm.data.text import encode

    if checkpoint.tokenizer is None:
        raise ValueError("text: this checkpoint holds no vocabulary of text")
    if len(gap) != 1:
        raise ValueError(f"gap: got {gap!r}; allowed: one character")
    length = checkpoint.model.chain.length
    given: list[int | None] = []
    try:
        for part in re.split(f"({re.escape(gap)}+)", text):
            given += [None] * len(part) if part.startswith(gap) else encode(checkpoint.tokenizer, part)
    except ValueError as error:
        raise ValueError(f"text: {error}") from error
    if None not in given:
        raise ValueError(f"text: got no gap, {gap!r}, in it; allowed: one or more (`gap` tells of which)")
    if not 1 <= len(given) <= length:
        raise ValueError(f"text: got {len(given)} tokens; allowed: 1 to {length}")
    rest = [None] * (length - len(given))
    frozen = torch.tensor([token is not None for token in [*given, *rest]])
    tokens = torch.tensor([token or 0 for token in [*given, *rest]])
    return Given(tokens, frozen), len(given)


def _infill_image(
    checkpoint: Checkpoint, config: GenerateConfig, options: argparse.Namespace, processes: Processes
) -> None:
    from ggm.commands import output, provenance
    from ggm.data.images.masks import frozen_tokens, pixels_to_draw, read_image

    images = checkpoint.images
    if images is None:
        raise ValueError("image: this checkpoint holds no tokenizer of images")
    output.check_output(options.out, checkpoint, config.count)
    pixels = read_image(images, options.image)
    mask = pixels_to_draw(images, options.image, mask=options.mask, box=options.box)
    given = Given(images.encode(pixels)[0].cpu(), frozen_tokens(images, mask))
    progress = processes.is_main and sys.stderr.isatty()
    result = fill(checkpoint.model, given, config, processes, progress=progress)
    if not processes.is_main:
        return
    output.write_samples(options.out, result.tokens, checkpoint, given)
    provenance.write_record(options.out, provenance.of_samples(result, config, checkpoint, processes))
    drawn = int((~given.frozen).sum())
    print(f"{drawn} of {len(given.frozen)} tokens drawn", file=sys.stderr)
    tell_cost(result)
