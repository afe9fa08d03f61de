"""What of an image is given, and what is to be drawn."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ggm.data.images.files import fit, open_picture
from ggm.data.images.tokenizers import ImageTokenizer

_WHITE = 128
_HOLE = (232, 201, 168)
_GREY_HOLE = 128


def read_image(tokenizer: ImageTokenizer, path: Path) -> torch.Tensor:
    """Picture of a file as the tokenizer takes it, uint8 [1, size, size, C]."""
    return fit(open_picture(path), tokenizer.size, tokenizer.mode)[None]


def pixels_to_draw(
    tokenizer: ImageTokenizer, image: Path, *, mask: Path | None = None, box: str | None = None
) -> torch.Tensor:
    """Pixels of an image that a mask file or a box leaves to be drawn.

    Parameters
    ----------
    tokenizer : ImageTokenizer
        Tells the size.
    image : Path
        The image, which a mask must have the size of.
    mask : Path, optional
        A picture that is white where the image is to be drawn; needed where there is no box.
    box : str, optional
        "x0,y0,x1,y1": pixels from the left and from the top; x1 and y1 are the first outside.

    Returns
    -------
    torch.Tensor
        bool [size, size].

    Raises
    ------
    ValueError
        If the mask has not the size of the image, or the box is none within it.
    """
    if box is not None:
        return _box(tokenizer.size, box)
    assert mask is not None
    return _white(tokenizer.size, mask, image)


def _white(size: int, mask: Path, image: Path) -> torch.Tensor:
    white, picture = open_picture(mask), open_picture(image)
    if white.size != picture.size:
        width, height = picture.size
        raise ValueError(
            f"mask: got {white.size[0]} x {white.size[1]} pixels; allowed: {width} x {height}, as the image"
        )
    return fit(white, size, "L")[..., 0] >= _WHITE


def _box(size: int, box: str) -> torch.Tensor:
    parts = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", box.replace(" ", ""))
    left, top, right, bottom = (int(part) for part in parts.groups()) if parts else (0, 0, 0, 0)
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise ValueError(f"box: got {box!r}; allowed: x0,y0,x1,y1 with x0 < x1, y0 < y1, up to {size}")
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


def frozen_tokens(tokenizer: ImageTokenizer, mask: torch.Tensor) -> torch.Tensor:
    """Tokens that are given: those with no pixel to be drawn.

    Parameters
    ----------
    tokenizer : ImageTokenizer
        Tells the grid.
    mask : torch.Tensor
        bool [size, size]: pixels to be drawn.

    Returns
    -------
    torch.Tensor
        bool [L].

    Raises
    ------
    ValueError
        If nothing is to be drawn.
    """
    if not mask.any():
        raise ValueError("mask: got no white pixel; allowed: white where the image is to be drawn")
    return ~_cells(tokenizer, mask).any(dim=-1).flatten()


def show_hole(tokenizer: ImageTokenizer, pixels: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
    """Pictures, uint8 [N, size, size, C], with what is not frozen, bool [L], painted over."""
    rows, columns = tokenizer.grid
    open_ = ~frozen.view(rows, columns)
    open_ = open_.repeat_interleave(tokenizer.size // rows, 0)
    open_ = open_.repeat_interleave(tokenizer.size // columns, 1)
    paint = torch.tensor(_HOLE if pixels.shape[-1] == 3 else (_GREY_HOLE,), dtype=torch.uint8)
    return torch.where(open_[..., None], paint, pixels)


def _cells(tokenizer: ImageTokenizer, values: torch.Tensor) -> torch.Tensor:
    """Values [size, size] by token: [rows, columns, pixels of a token]."""
    rows, columns = tokenizer.grid
    cells = values.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
    return cells.movedim(2, 1).flatten(2)
