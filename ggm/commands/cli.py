"""The command line: ``ggm demo | train | train-vq | sample | infill | evaluate | score``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggm.commands import image_commands
from ggm.commands.environment import prepare
from ggm.commands.sampling_options import add_drawing, open_checkpoint
from ggm.extras import MissingExtraError
from ggm.progress import say

if TYPE_CHECKING:
    from ggm.sampling.stepwise import SampleResult

_DEMO = """\
Learn handwritten digits (8 x 8 pixels, from scikit-learn, no download) and show what was learnt.

Trains a small Glauber generative model with a progress bar, draws samples, fills in the lower half
of real digits that it has never seen, and writes three pictures: samples.png (real digits beside
samples), chain.png (chains from noise to digit) and infill.png. Prints the Frechet distance of
samples and of held-out digits to the training set, the share of samples that copy a training
image, and the calibration sum_a exp g, which is 1 for a perfect model.

The three minutes of training are for two CPU cores; the rest takes less than two."""

_TRAIN = """\
Train the model that a YAML file describes; configs/ holds some.

Writes into the folder `out` of the file: checkpoints/step-N (the last few, each complete and usable by
`ggm sample` and by GGM.from_pretrained), metrics.jsonl (a line per step), tensorboard/ if tensorboard
is installed. SIGTERM and Ctrl-C save a checkpoint and end the run; --resume continues it, after a kill
or a power cut, too: at most the steps since the last checkpoint are lost, and the loss curve is that of a
run that was never stopped.

Several processes:  torchrun --nproc-per-node 8 -m ggm train CONFIG
               or:  accelerate launch --multi_gpu --num_processes 8 -m ggm train CONFIG
They train on the same batches with the same noise as one process. `sharding: fsdp2` spreads the model over
them."""

_SAMPLE = """\
Draw samples from a checkpoint and print them: text where the model is one of text, tokens otherwise.
Images are written with --out.

A sample depends on the seed and on its number only, not on --batch or --count."""

_INFILL = """\
Fill the gaps of a text or of an image, which keeps all that is given.

    ggm infill outputs/pydoc-char --text 'The ______ statement' --count 4

Every character of a gap is one token to be drawn: one character, if the vocabulary is one of characters.

    ggm infill outputs/digits --image digit.png --box 0,4,8,8 --count 8 --out infills.png

The image is brought to the size of the model's: the shorter side resized, then the middle taken. Tokens that
touch a white pixel of the mask, or the box, are drawn. Where a network makes tokens of pixels, those
beside the hole were made with some of what was there in sight, and all pixels are drawn from tokens anew."""


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
    prepare()
    options = _parser().parse_args(arguments)
    from ggm_kernels.backends import BackendError

    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MissingExtraError, BackendError, ValueError, OSError, FloatingPointError) as error:
        say(f"ggm: error: {_told(error)}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ggm: interrupted", file=sys.stderr)
        return 130
    return 0


def _told(error: BaseException) -> str:
    """One line; other packages' messages may have several."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    from ggm.commands import evaluate as evaluation

    parser = argparse.ArgumentParser(prog="ggm", description="Glauber generative models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str, run: Callable[[argparse.Namespace], None]) -> Any:
        added = commands.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    _add_demo(
        command("demo", "learn handwritten digits in minutes and draw what was learnt", _DEMO, _run_demo)
    )
    _add_train(command("train", "train the model that a YAML file describes", _TRAIN, _run_train))
    _add_sample(command("sample", "draw samples from a checkpoint", _SAMPLE, _run_sample))
    _add_infill(command("infill", "fill the gaps of a text or an image", _INFILL, _run_infill))
    _add_evaluate(
        command(
            "evaluate", "score samples of a checkpoint, and its losses", evaluation.EVALUATE, _run_evaluate
        )
    )
    evaluation.add_score(
        command("score", "score samples of any system", evaluation.SCORE, evaluation.run_score)
    )
    image_commands.add_train_vq(
        command(
            "train-vq",
            "train a network that makes tokens of images",
            image_commands.TRAIN_VQ,
            image_commands.run_train_vq,
        )
    )
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    from ggm.commands import demo

    defaults = demo.DemoConfig()
    command.add_argument(
        "--seconds",
        type=float,
        default=defaults.seconds,
        metavar="S",
        help="seconds of training (default: %(default)g)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        metavar="N",
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
        metavar="N",
        help="digits to draw, and held-out digits to compare them with (default: %(default)s)",
    )


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the file, as model.backbone.depth=2; may be given again",
    )
    command.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if any")
    command.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop after N steps in all, with the learning rates of the whole run",
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_sample(command: argparse.ArgumentParser) -> None:
    add_drawing(command)
    command.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="write them there: .npy (tokens), .jsonl (tokens and text), .txt (text), .png (images side by "
        "side), or a folder (images; PATH.grid.png shows them side by side); PATH.meta.json tells seed, "
        "precision, cost and versions",
    )


def _add_infill(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="text with gaps")
    image_commands.add_infill_image(command, what)
    command.add_argument(
        "--gap", default="_", metavar="C", help="character that stands for a gap (default: %(default)s)"
    )
    add_drawing(command)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    from ggm.commands import evaluate as commands

    add_drawing(command)
    commands.add_evaluate(command)


def _run_demo(options: argparse.Namespace) -> None:
    from ggm.commands import demo

    demo.run(demo.DemoConfig(options.seconds, options.seed, options.out, options.samples))


def _run_train(options: argparse.Namespace) -> None:
    from ggm.training.config import read_config
    from ggm.training.run import run

    config = read_config(options.config, options.set)
    result = run(config, resume=options.resume, max_steps=options.max_steps, progress=not options.quiet)
    if result.is_main_process:
        stopped = f"stopped by {result.stopped_by}, --resume continues; " if result.stopped_by else ""
        say(f"{stopped}{result.steps} steps; checkpoint {result.checkpoint}", sys.stdout)


def _run_sample(options: argparse.Namespace) -> None:
    from ggm.commands import generate, provenance
    from ggm.training.checkpoints import find

    checkpoint, config = open_checkpoint(options)
    generate.check_output(options.out, checkpoint)
    result = generate.sample(checkpoint.model, config, progress=sys.stderr.isatty())
    _tell_cost(result)
    tokens = result.tokens
    if options.out is not None:
        generate.write_samples(options.out, tokens, checkpoint)
        record = provenance.of_samples(result, config, checkpoint.model, find(options.checkpoint))
        provenance.write_record(options.out, record)
        return
    for line in generate.texts(checkpoint, tokens) or (" ".join(map(str, row)) for row in tokens.tolist()):
        print(line)


def _run_infill(options: argparse.Namespace) -> None:
    from ggm.commands import generate

    image_commands.check_infill(options)
    checkpoint, config = open_checkpoint(options)
    progress = sys.stderr.isatty()
    if options.image is not None:
        _tell_cost(image_commands.infill_image(checkpoint, config, options, progress=progress))
        return
    result = generate.infill(checkpoint, options.text, options.gap, config, progress=progress)
    _tell_cost(result)
    for text in generate.texts(checkpoint, result.tokens) or []:
        print(text)


def _tell_cost(result: SampleResult) -> None:
    """Tell who watches what samples cost."""
    if sys.stderr.isatty():
        print(
            f"{result.network_evaluations} network evaluations, {result.site_updates_per_second:.3g} "
            f"site updates/s, {result.seconds:.1f} s",
            file=sys.stderr,
        )


def _run_evaluate(options: argparse.Namespace) -> None:
    from ggm.commands import evaluate as commands

    commands.run_evaluate(options, *open_checkpoint(options))
