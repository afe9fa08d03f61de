"""The libraries that the integrations are for."""

from __future__ import annotations

import importlib.metadata
import re


def need(library: str, least: str) -> None:
    """Check that a library is installed, in a version that an integration knows.

    Parameters
    ----------
    library : str
        Name of the library, and of the extra of this package that brings it.
    least : str
        The oldest version that will do, as ``"0.42"``.

    Raises
    ------
    ImportError
        In one line: what is missing or too old, and how to get it.
    """
    how = f"pip install 'ggm-kernels[{library}]'"
    try:
        found = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{library}>={least} is needed and not installed: {how}", name=library) from None
    if _numbers(found) < _numbers(least):
        raise ImportError(f"{library}>={least} is needed, and {found} is installed: {how}", name=library)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
