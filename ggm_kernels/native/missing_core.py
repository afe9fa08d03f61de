"""Why there is no compiled core, and how to get it."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_COMPILER = "install a C++ compiler, then pip install again"


def cause(record: dict[str, Any] | None, error: str) -> str:
    """What to say of a core that does not load.

    Parameters
    ----------
    record : dict or None
        The record of the build that made this package; None where no build did.
    error : str
        What the import said.
    """
    package = Path(__file__).resolve().parent.parent
    if record is None:
        checkout = package.parent
        hidden = hidden_install(package, sys.path)
        if hidden is not None:
            return (
                f"{package} is what Python imports, a checkout without one, and hides the installed "
                f"{hidden}: start Python in another folder, or pip install -e {checkout}"
            )
        return f"{package} was not put there by pip ({error}): pip install -e {checkout}"
    if record["native"]["built"]:
        return f"{error}: {_COMPILER}"
    return f"{record['native']['reason']}: {_COMPILER}"


def hidden_install(package: Path, path: list[str]) -> Path | None:
    """The first folder of this package's name on `path`, but for `package`, that has a core."""
    for entry in path:
        folder = Path(entry or ".").resolve() / package.name
        if folder != package and any((folder / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
            return folder
    return None
