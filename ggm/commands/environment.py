"""Process settings of commands, made before torch is loaded: how threads wait, what malloc keeps."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def prepare() -> None:
    """Choose what suits short steps on a CPU, unless the environment does. Before torch is loaded."""
    # How long a thread of OpenMP spins before it sleeps. Its own choice, milliseconds, makes training many
    # times slower beside any other program on the same cores; not to spin at all makes it half as fast
    # alone. OpenMP reads this once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have malloc keep what a step frees for the next one.

    By default glibc gives activations of a few MB back to the system at once, which then makes their pages
    anew: that can take as long as the network itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, 2**28)
