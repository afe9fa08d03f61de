"""Sets of images, wherever they come from, as batches of 8-bit numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ggm.data.images.files import Images, read_batches
from ggm.data.images.tokenizers import ImageTokenizer, VQTokenizer
from ggm.evaluation.config import ImageShape
from ggm.evaluation.samples import Samples


@dataclass(frozen=True)
class ImageSet:
    """Images that are read, or decoded, a batch at a time, as often as they are asked for.

    Attributes
    ----------
    shape : ImageShape
        Of all of them.
    count : int
        How many there are.
    read : callable
        Gives, for a batch size, batches uint8 [B, shape.length] of levels, in one order always.
    tokens : torch.Tensor or None
        Tokens that the images are made of, integer [count, L], where they are known.
    """

    shape: ImageShape
    count: int
    read: Callable[[int], Iterator[torch.Tensor]]
    tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.count


def to_pixels(levels: torch.Tensor, shape: ImageShape) -> torch.Tensor:
    """Images of levels [N, L], as networks of FID take them: uint8 [N, 3, H, W], grey ones repeated."""
    grid = levels.view(len(levels), shape.height, shape.width, shape.channels)
    bright = (grid.double() * (255 / (shape.levels - 1))).round().to(torch.uint8)
    return bright.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()


def shape_of(tokenizer: ImageTokenizer) -> ImageShape:
    """Shape of what a tokenizer decodes: grey levels stay levels, all else are pixels."""
    channels = 3 if tokenizer.mode == "RGB" else 1
    levels = 256 if isinstance(tokenizer, VQTokenizer) else tokenizer.vocab_size
    return ImageShape(tokenizer.size, tokenizer.size, channels, levels)


def grid_images(samples: Samples, shape: ImageShape, source: str) -> ImageSet:
    """Images whose tokens are levels.

    Parameters
    ----------
    samples : Samples
        With tokens, all of one length.
    shape : ImageShape
        How they are images.
    source : str
        What messages call them.

    Raises
    ------
    ValueError
        If they are not tokens of such images.
    """
    if samples.tokens is None or len({len(row) for row in samples.tokens}) != 1:
        raise ValueError(
            f"{source}: got no tokens of one length; allowed with `grid`: .npy, or .jsonl of tokens"
        )
    tokens = torch.as_tensor(samples.tokens)
    shape.check(tokens, source)
    return ImageSet(shape, len(tokens), tokens.to(torch.uint8).split, tokens)


def decoded_images(tokens: torch.Tensor, tokenizer: VQTokenizer) -> ImageSet:
    """Images that a network makes of tokens, int64 [N, L]."""

    def read(batch: int) -> Iterator[torch.Tensor]:
        return (tokenizer.decode(part).flatten(1) for part in tokens.split(batch))

    return ImageSet(shape_of(tokenizer), len(tokens), read, tokens)


def picture_images(
    pictures: Images, order: torch.Tensor, shape: ImageShape, tokens: torch.Tensor | None = None
) -> ImageSet:
    """Pictures of any size, resized and cut to squares as for training.

    Parameters
    ----------
    pictures : Images
        Where they are.
    order : torch.Tensor
        Indices of those wanted, int64 [N].
    shape : ImageShape
        What they are brought to; pixels are rounded to its levels.
    tokens : torch.Tensor, optional
        Their tokens, [N, L].

    Raises
    ------
    ValueError
        If the shape is no square.
    """
    if shape.height != shape.width:
        raise ValueError(
            f"grid: got {shape.height} x {shape.width} with a folder of images; allowed: squares"
        )
    mode = "RGB" if shape.channels == 3 else "L"

    def read(batch: int) -> Iterator[torch.Tensor]:
        for pixels in read_batches(pictures, order, shape.height, mode, batch):
            yield (pixels.flatten(1) * ((shape.levels - 1) / 255)).round().to(torch.uint8)

    return ImageSet(shape, len(order), read, tokens)
