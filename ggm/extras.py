"""Optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional package is needed and not installed; the message says how to get it."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Parameters
    ----------
    module : str
        Module to import, as ``sklearn.datasets``.
    extra : str
        The extra of this package that brings it.

    Raises
    ------
    MissingExtraError
        If it cannot be found, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} is not installed: pip install 'ggm-kernels[{extra}]'"
        ) from error
    except ImportError as error:  # built for another torch, say
        reason = " ".join(str(error).split())
        raise MissingExtraError(
            f"{module.partition('.')[0]} is installed and does not load: {reason}"
        ) from error
