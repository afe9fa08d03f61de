"""Small pictures for tests."""

from pathlib import Path

import numpy
import torch
from PIL import Image

# Pixels of a side, to which tests bring the pictures of the fixture `folder`, and how many there are.
SIZE, COUNT = 16, 24


def draw_pictures(folder: Path, count: int, *, width: int = 20, height: int = 24) -> Path:
    """Coloured boxes on coloured ground, in two folders and two formats."""
    rng = numpy.random.default_rng(0)
    for i in range(count):
        pixels = numpy.empty((height, width, 3), "uint8")
        pixels[:] = rng.integers(0, 256, 3)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        pixels[top : top + height // 2, left : left + width // 2] = rng.integers(0, 256, 3)
        path = folder / "ab"[i % 2] / f"{i}.{'png' if i % 3 else 'webp'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, lossless=True)
    return folder


def small_vq(folder: Path, *, downsampling: int = 4, vocab_size: int = 16, width: int = 8, **options) -> Path:
    """A VQModel with random weights whose tokens are not all alike."""
    import diffusers

    from ggm.training.vq import VQConfig, make_vq

    torch.manual_seed(0)
    model = make_vq(
        VQConfig(size=downsampling, downsampling=downsampling, vocab_size=vocab_size, width=width)
    )
    if options:
        make = {key: value for key, value in model.config.items() if not key.startswith("_")}
        model = diffusers.VQModel(**{**make, **options})
    noise = torch.rand(vocab_size, model.config.in_channels, downsampling, downsampling) * 2 - 1
    with torch.no_grad():
        model.quantize.embedding.weight[:] = model.encode(noise).latents.flatten(1)
    model.save_pretrained(folder)
    return folder
