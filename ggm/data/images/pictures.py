"""Pictures as PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ggm.extras import require

_GAP = 2
_PAPER = 255
# Smaller pictures are enlarged in grids, to be seen.
_LEAST_SIDE = 64


def grid_beside(folder: Path) -> Path:
    """Name of the file that shows a folder's pictures side by side: ``samples.grid.png`` for ``samples``.

    Not in the folder, where it would be one of the pictures.
    """
    return folder.with_name(f"{folder.name}.grid.png")


def grid(pixels: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Pictures side by side, small ones enlarged.

    Parameters
    ----------
    pixels : torch.Tensor
        uint8 [N, H, W, C] with 1 or 3 channels.
    columns : int, optional
        Pictures in a row; by default as many as make a square.

    Returns
    -------
    torch.Tensor
        One picture, uint8 [H', W', C].
    """
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    scale = math.ceil(_LEAST_SIDE / min(height, width))
    height, width = scale * height, scale * width
    pixels = pixels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    canvas = torch.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), _PAPER, dtype=torch.uint8
    )
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def write_grid(path: Path, pixels: torch.Tensor, columns: int | None = None) -> None:
    """Write the `grid` of pictures to a PNG file."""
    write_picture(path, grid(pixels, columns))


def write_picture(path: Path, pixels: torch.Tensor) -> None:
    """Write one picture, uint8 [H, W, 1 or 3], to a PNG file."""
    values = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    require("PIL.Image", extra="images").fromarray(values.contiguous().numpy()).save(path, format="PNG")


def name_of(number: int) -> str:
    """Name of a picture in a folder of them: 00000.png, 00001.png, .."""
    return f"{number:05d}.png"


def write_pictures(folder: Path, pixels: torch.Tensor) -> None:
    """Write pictures, uint8 [N, H, W, C], to a folder, each to a file of its number (`name_of`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pixels):
        write_picture(folder / name_of(i), picture)
