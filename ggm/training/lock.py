"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ggm.progress import say

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


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
    The system frees the lock when the process ends, however it does. A file system that knows no locks
    is told of and written to without one.
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
                return _signed(file)
        except BlockingIOError as error:
            holder = os.read(file, 32).decode(errors="replace").strip()
            os.close(file)
            told = f" (process {holder})" if holder.isdigit() else ""
            raise LockedError(
                f"{path.parent}: another run trains there{told}; `out:` names another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            say(f"ggm: {path.parent}: not locked: {(error.strerror or '').lower()}", sys.stderr)
            return _signed(file)
        os.close(file)  # the run before removed it in between


def _signed(file: int) -> int:
    """The same descriptor, with the number of this process in the file."""
    with suppress(OSError):  # on a full disk: it is only told of
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
    return file


def _is(file: int, path: Path) -> bool:
    """Whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
