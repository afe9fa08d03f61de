"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"


class LockedError(OSError):
    """Another process trains in the folder."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder for a run; it is made, and removed again if nothing was written to it.

    Parameters
    ----------
    out : Path
        Folder of the run.

    Raises
    ------
    LockedError
        If another process holds it; nothing is written then.
    OSError
        If the folder cannot be made or written to.

    Notes
    -----
    The system frees the lock when the process ends, however it does.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    file = _taken(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        if made:
            with suppress(OSError):  # it is not empty
                out.rmdir()


def _taken(path: Path) -> int:
    """Descriptor of a file that this process has locked, and that is still the one of this name."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
                return file
        except BlockingIOError as error:
            holder = os.read(file, 32).decode(errors="replace").strip()
            os.close(file)
            told = f" (process {holder})" if holder.isdigit() else ""
            raise LockedError(
                f"{path.parent}: another run trains there{told}; `out:` names another folder"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the run before removed it in between


def _is(file: int, path: Path) -> bool:
    """Whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
