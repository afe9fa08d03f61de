"""Pictures of the digits demo, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ggm.data.digits import SIDE
from ggm.extras import require
from ggm.files import replacing

_INK = "#1b2a41"
_PAPER = "#ffffff"
_HIDDEN = "#e8c9a8"
_FRAME = "#c9ced6"
_TEXT = {"color": _INK, "fontfamily": "sans-serif"}
_DPI = 130
_SIDES = ("bottom", "left", "right", "top")


def real_and_sampled(path: Path, real: torch.Tensor, sampled: torch.Tensor, levels: int) -> None:
    """Real digits on the left, samples on the right.

    Parameters
    ----------
    path : Path
        PNG file to write.
    real, sampled : torch.Tensor
        Tokens, int64 [N, 64]; as many as fill a square are shown.
    levels : int
        Grey levels.
    """
    side = int(min(len(real), len(sampled), 100) ** 0.5)
    figure = _figure(width=2 * 0.5 * side + 0.7, height=0.5 * side + 0.6)
    halves = figure.subfigures(1, 2, wspace=0.04)
    titled = [("Real digits (held out)", real), ("Samples of the model", sampled)]
    for half, (title, tokens) in zip(halves, titled, strict=True):
        half.suptitle(title, fontsize=13, **_TEXT)
        grid = half.subplots(side, side, gridspec_kw=_grid(top=1 - 0.45 / (0.5 * side + 0.6)))
        for axes, image in zip(_flat(grid), tokens, strict=False):
            _draw(axes, image, levels)
    _save(figure, path)


def film_strip(path: Path, frames: Sequence[tuple[int, torch.Tensor]], levels: int) -> None:
    """Chains from noise (left) to digit (right), one per row.

    Parameters
    ----------
    path : Path
        PNG file to write.
    frames : sequence of (int, torch.Tensor)
        Chain time and tokens, int64 [chains, 64], from time T down to 0.
    levels : int
        Grey levels.
    """
    rows = len(frames[0][1])
    figure = _figure(width=0.82 * len(frames) + 0.3, height=0.82 * rows + 0.95)
    figure.suptitle("From noise to digit: the chain run backwards", fontsize=13, **_TEXT)
    height = 0.82 * rows + 0.95
    grid = figure.subplots(
        rows,
        len(frames),
        squeeze=False,
        gridspec_kw=_grid(top=1 - 0.72 / height, bottom=0.1 / height),
    )
    for column, (time, tokens) in enumerate(frames):
        label = f"t = {time}" if column else f"t = T = {time}"
        grid[0, column].set_title(label, fontsize=8, pad=4, **_TEXT)
        for row in range(rows):
            _draw(grid[row, column], tokens[row], levels)
    _save(figure, path)


def infills(path: Path, real: torch.Tensor, frozen: torch.Tensor, filled: torch.Tensor, levels: int) -> None:
    """Real digits, what the model is given of them, and what it makes of that.

    Parameters
    ----------
    path : Path
        PNG file to write.
    real : torch.Tensor
        Tokens, int64 [N, 64].
    frozen : torch.Tensor
        bool [64]: the pixels that are given.
    filled : torch.Tensor
        Tokens, int64 [R, N, 64]: R infills of each.
    levels : int
        Grey levels.
    """
    columns, rows = len(real), 2 + len(filled)
    height = 0.72 * rows + 0.55
    figure = _figure(width=0.72 * columns + 1.2, height=height)
    figure.suptitle("Held-out digits, lower half filled in by the model", fontsize=13, **_TEXT)
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw=_grid(top=1 - 0.45 / height, bottom=0.08 / height, left=0.13),
    )
    labels = ["real", "given", *[f"infill {r + 1}" for r in range(len(filled))]]
    for row, label in enumerate(labels):
        grid[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, **_TEXT)
    for column in range(columns):
        _draw(grid[0, column], real[column], levels)
        _draw(grid[1, column], real[column].masked_fill(~frozen, -1), levels)
        for row, tokens in enumerate(filled, start=2):
            _draw(grid[row, column], tokens[column], levels)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    return require("matplotlib.figure", extra="demo").Figure(
        figsize=(width, height), dpi=_DPI, facecolor=_PAPER
    )


def _grid(top: float, bottom: float = 0.02, left: float = 0.02) -> dict[str, float]:
    return {
        "left": left,
        "right": 0.98,
        "bottom": bottom,
        "top": top,
        "wspace": 0.08,
        "hspace": 0.08,
    }


def _flat(grid: Any) -> Any:
    return [grid] if not hasattr(grid, "flat") else grid.flat


def _draw(axes: Any, tokens: torch.Tensor, levels: int) -> None:
    """One image, each pixel a sharp square; negative tokens are hidden pixels."""
    colors = require("matplotlib.colors", extra="demo")
    shades = colors.LinearSegmentedColormap.from_list("ink", [_PAPER, _INK])
    shades = shades.with_extremes(under=_HIDDEN)
    axes.imshow(
        tokens.view(SIDE, SIDE).numpy(),
        cmap=shades,
        vmin=0,
        vmax=levels - 1,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in _SIDES:
        axes.spines[side].set_color(_FRAME)
        axes.spines[side].set_linewidth(0.6)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as aside:
        figure.savefig(aside)
