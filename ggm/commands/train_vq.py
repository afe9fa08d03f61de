"""`ggm train-vq`: train a small VQModel on images of one's own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from ggm.commands.flags import Flags
from ggm.training.vq_config import VQConfig


@dataclass(frozen=True)
class TrainVQOptions:
    """Train a network that makes tokens of images.

    It is a small VQModel of diffusers, which makes tokens of images and images of tokens. It is trained on a
    folder of images and written to a folder that `data.tokenizer` of a configuration can name.

        ggm train-vq photos --out outputs/vq --size 64 --downsampling 8 --steps 2000

    An image of size 64 becomes a grid of 8 x 8 tokens. reconstructions.png in the folder shows images above
    what is left of them. The network is small and its loss plain: it is there to try things out. For large
    photographs, take a network that was trained on many: most configurations name one.

    Attributes
    ----------
    images : str
        Folder of images at any depth, a .parquet file, or a name on the Hub.
    out : Path
        Folder for the network.
    column : str
        Column of images of a data set.
    device : str
        Where: cpu, cuda, ..
    quiet : bool
        No progress bar.
    """

    images: str
    out: Path = field(metadata={"required": True})
    column: str = "image"
    device: str = "cpu"
    quiet: bool = False


_VQ = Flags(VQConfig, names={"vocab_size": "codebook", "batch_size": "batch"}, title="network and training")
FLAGS = (Flags(TrainVQOptions), _VQ)


def run(options: argparse.Namespace) -> None:
    """Train, write, tell."""
    config = _VQ.make(options)
    from ggm.commands.devices import check_device
    from ggm.data.images.files import open_images
    from ggm.files import check_writable
    from ggm.training.vq import save_vq, train_vq

    check_device(options.device)
    images = open_images(options.images, column=options.column, progress=not options.quiet)
    check_writable(options.out)
    result = train_vq(images, config, device=options.device, progress=not options.quiet)
    save_vq(result, images, options.out)
    recent = result.losses[-max(1, len(result.losses) // 10) :]
    print(
        f"{len(images)} images; mean squared error {sum(recent) / len(recent):.4f} of pixels in [-1, 1], "
        f"at first {result.losses[0]:.4f}; {result.used} of {config.vocab_size} vectors used; {options.out}"
    )
