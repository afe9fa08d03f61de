"""Samples as a notebook shows them: texts, or pictures side by side."""

from __future__ import annotations

import base64
import html
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from ggm.data.images.pictures import write_grid

# Of each of them.
_MOST = 64


def shown(caption: str, texts: list[str] | None, pictures: torch.Tensor | None) -> str:
    """HTML of the first 64 samples.

    Parameters
    ----------
    caption : str
        Stands below them.
    texts : list of str or None
        Samples of text.
    pictures : torch.Tensor or None
        Samples of images, uint8 [N, H, W, C]; left out if Pillow is not installed.
    """
    body = ""
    if texts is not None:
        rows = "".join(f"<li><pre>{html.escape(text)}</pre></li>" for text in texts[:_MOST])
        body = f"<ol>{rows}</ol>"
    elif pictures is not None and len(pictures) and find_spec("PIL") is not None:
        body = f'<img alt="samples" src="data:image/png;base64,{_png(pictures[:_MOST])}">'
    return f"<div>{body}<p>{html.escape(caption)}</p></div>"


def _png(pictures: torch.Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grid.png")
        write_grid(path, pictures)
        return base64.b64encode(path.read_bytes()).decode()
