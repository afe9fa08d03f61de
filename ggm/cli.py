"""The command line: ``ggm demo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ggm.extras import MissingExtraError

_DEMO = """\
Learn handwritten digits (8 x 8 pixels, from scikit-learn, no download) and show what was learnt.

Trains a small Glauber generative model with a progress bar, draws samples, fills in the lower half
of real digits that it has never seen, and writes three pictures: samples.png (real digits beside
samples), chain.png (chains from noise to digit) and infill.png. Prints the Frechet distance of
samples and of held-out digits to the training set, the share of samples that copy a training
image, and the calibration sum_a exp g, which is 1 for a perfect model.

The three minutes of training are for two CPU cores; the rest takes less than two."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words after ``ggm``; the default is those of the process.

    Returns
    -------
    int
        Exit status: 0, or 1 after an error, which is told in one line on stderr.
    """
    # How long a thread of OpenMP spins before it sleeps. Its own choice, milliseconds, makes training many
    # times slower beside any other program on the same cores; not to spin at all makes it half as fast
    # alone. OpenMP reads this once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (MissingExtraError, ValueError, OSError) as error:
        print(f"ggm: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ggm: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from ggm import demo

    parser = argparse.ArgumentParser(prog="ggm", description="Glauber generative models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    defaults = demo.DemoConfig()
    command = commands.add_parser(
        "demo",
        help="learn handwritten digits in minutes and draw what was learnt",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=defaults.seconds,
        help="training time (default: %(default)g)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        help="of weights, data order, noise and samples (default: %(default)s)",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=defaults.out,
        metavar="DIR",
        help="folder for the pictures (default: %(default)s)",
    )
    command.add_argument(
        "--samples",
        type=int,
        default=defaults.samples,
        help="digits to draw, and held-out digits to compare them with (default: %(default)s)",
    )
    command.set_defaults(run=_run_demo)
    return parser


def _run_demo(options: argparse.Namespace) -> None:
    from ggm import demo

    demo.run(demo.DemoConfig(options.seconds, options.seed, options.out, options.samples))
