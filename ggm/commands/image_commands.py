"""What of the command line concerns images alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm.sampling.stepwise import SampleResult

TRAIN_VQ = """\
Train a small VQModel of diffusers, which makes tokens of images and images of tokens, on a folder of
images, and write it to a folder that `data.tokenizer` of a configuration can name.

    ggm train-vq photos --out outputs/vq --size 64 --downsampling 8 --steps 2000

An image of size 64 becomes a grid of 8 x 8 tokens. reconstructions.png in the folder shows images above
what is left of them. The network is small and its loss plain: it is there to try things out. For large
photographs, take a network that was trained on many: most configurations name one."""


def add_train_vq(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ggm train-vq``."""

    def number(flag: str, default: float, text: str, name: str | None = None) -> None:
        command.add_argument(
            flag,
            type=type(default),
            default=default,
            metavar="N",
            dest=name,
            help=f"{text} (default: %(default)s)",
        )

    command.add_argument(
        "source",
        metavar="IMAGES",
        help="folder of images at any depth, a .parquet file, or a name on the Hub",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the network")
    number("--size", 64, "pixels of a side")
    number("--downsampling", 8, "pixels of a side per token: a power of 2")
    number("--codebook", 512, "tokens there are", "vocab_size")
    number("--latent-channels", 8, "numbers that a token stands for")
    number("--width", 32, "channels of the network at full size, a multiple of 8")
    command.add_argument("--grey", action="store_true", help="one channel instead of three")
    number("--steps", 2000, "steps of training")
    number("--batch", 16, "images per step", "batch_size")
    number("--learning-rate", 1e-3, "peak of the learning rate")
    number("--seed", 0, "of weights and order")
    command.add_argument(
        "--column",
        default="image",
        metavar="KEY",
        help="column of images of a data set (default: %(default)s)",
    )
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, .. (default: %(default)s)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def run_train_vq(options: argparse.Namespace) -> None:
    """Run ``ggm train-vq``."""
    from ggm.commands.devices import check_device
    from ggm.data.images.files import open_images
    from ggm.files import check_writable
    from ggm.training.vq import VQConfig, save_vq, train_vq

    config = VQConfig(
        **{name: getattr(options, name) for name in VQConfig.__dataclass_fields__ if hasattr(options, name)}
    )
    check_device(options.device)
    images = open_images(options.source, column=options.column, progress=not options.quiet)
    check_writable(options.out)
    result = train_vq(images, config, device=options.device, progress=not options.quiet)
    save_vq(result, images, options.out)
    recent = result.losses[-max(1, len(result.losses) // 10) :]
    print(
        f"{len(images)} images; mean squared error {sum(recent) / len(recent):.4f} of pixels in [-1, 1], "
        f"at first {result.losses[0]:.4f}; {result.used} of {config.vocab_size} vectors used; {options.out}"
    )


def add_infill_image(command: argparse.ArgumentParser, what: Any) -> None:
    """Add the arguments of ``ggm infill`` for images; `what` holds those of which there is one."""
    what.add_argument("--image", type=Path, metavar="FILE", help="image to be filled")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--mask", type=Path, metavar="FILE", help="image of the same size: white is to be drawn"
    )
    where.add_argument(
        "--box",
        metavar="X0,Y0,X1,Y1",
        help="box to be drawn, in pixels of the model's images, from the top left; x1 and y1 are outside",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="with --image: .png (side by side), a folder, .npy or .jsonl; PATH.meta.json tells seed, "
        "precision, cost and versions",
    )


def check_infill(options: argparse.Namespace) -> None:
    """Check that the words of ``ggm infill`` go together.

    Raises
    ------
    ValueError
        If they do not.
    """
    places = [f"--{name}" for name in ("mask", "box") if getattr(options, name) is not None]
    outputs = ["--out"] if options.out is not None else []
    if options.image is None:
        if places or outputs:
            raise ValueError(f"{', '.join(places + outputs)}: got without --image; allowed: with --image")
        return
    wanted = [] if outputs else ["--out"]
    wanted += [] if places else ["--mask or --box"]
    if wanted:
        raise ValueError(
            f"--image: got it without {' and '.join(wanted)}; allowed: with {' and '.join(wanted)}"
        )


def infill_image(
    checkpoint: Any, config: Any, options: argparse.Namespace, *, progress: bool
) -> SampleResult:
    """Run ``ggm infill --image``; returns what was drawn, and its cost.

    Raises
    ------
    ValueError
        If the model is not one of images, or a file or the box does not fit.
    """
    from ggm.commands import generate, provenance
    from ggm.data.images import masks as infilling
    from ggm.training.checkpoints import find

    images = checkpoint.images
    if images is None:
        raise ValueError("--image: this checkpoint holds no tokenizer of images")
    generate.check_output(options.out, checkpoint)
    pixels = infilling.read_image(images, options.image)
    mask = infilling.pixels_to_draw(images, options.image, mask=options.mask, box=options.box)
    given = generate.Given(images.encode(pixels)[0].cpu(), infilling.frozen_tokens(images, mask))
    result = generate.fill(checkpoint.model, given, config, progress=progress)
    generate.write_samples(options.out, result.tokens, checkpoint, given)
    record = provenance.of_samples(result, config, checkpoint.model, find(options.checkpoint))
    provenance.write_record(options.out, record)
    drawn = int((~given.frozen).sum())
    print(f"{drawn} of {len(given.frozen)} tokens drawn", file=sys.stderr)
    return result
