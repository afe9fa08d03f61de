"""The command line: a parser of all commands, and errors in one line that names flags."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

from ggm.commands import COMMANDS
from ggm.commands.environment import prepare
from ggm.commands.flags import description, with_flags
from ggm.extras import MissingExtraError
from ggm.progress import say


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
        options.module.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MissingExtraError, BackendError, ValueError, OSError, FloatingPointError) as error:
        say(f"ggm: error: {with_flags(_told(error), _words(options.module))}", sys.stderr)
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


def _words(module: Any) -> Mapping[str, str]:
    """Flags of a command by what the library calls them."""
    return {name: flag for flags in reversed(module.FLAGS) for name, flag in flags.words().items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ggm", description="Glauber generative models.")
    parser.add_argument("--version", action="version", version=f"ggm {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"ggm.commands.{name.replace('-', '_')}")
        text = description(module.FLAGS[0].cls)
        summary = text.split("\n\n")[0].rstrip(".")
        command = commands.add_parser(
            name,
            help=summary[0].lower() + summary[1:],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flags in module.FLAGS:
            flags.add(command)
        command.set_defaults(module=module)
    return parser


def _version() -> str:
    """Version of the package, read without importing it: that takes seconds."""
    package = find_spec("ggm_kernels")
    assert package is not None and package.origin is not None
    return run_path(str(Path(package.origin).with_name("_version.py")))["__version__"]
