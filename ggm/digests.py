"""SHA-256 of files, and of all files of a folder in a file of their own, so that a damaged one is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ggm.files import read_json

DIGESTS = "digests.json"
# Meant to be edited; nothing reads it.
_LEFT_OUT = {DIGESTS, "README.md"}
_PIECE = 2**20


@dataclass(frozen=True)
class Files:
    """A file, or those that a folder or a pattern stands for.

    Attributes
    ----------
    name : Path
        What messages call them.
    paths : tuple of Path
        All of them.
    """

    name: Path
    paths: tuple[Path, ...]

    @classmethod
    def single(cls, path: Path) -> Files:
        """One file."""
        return cls(path, (path,))


@dataclass(frozen=True)
class FileState:
    """What files were.

    Attributes
    ----------
    size : int
        Bytes, of all of them.
    sha256 : str
        SHA-256, as 64 hexadecimal digits; of several files that of their names and digests.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, files: Files) -> FileState:
        """State of files as they are now.

        Raises
        ------
        OSError
            If one cannot be read.
        """
        size = sum(path.stat().st_size for path in files.paths)
        if files.paths == (files.name,):
            return cls(size, sha256(files.name))
        # Names from the folder that holds them all: it may be moved.
        top = os.path.commonpath([path.parent for path in files.paths])
        names = {Path(os.path.relpath(path, top)).as_posix(): path for path in files.paths}
        lines = "".join(f"{sha256(names[name])} {name}\n" for name in sorted(names))
        return cls(size, hashlib.sha256(lines.encode()).hexdigest())

    def check(self, files: Files, known_from: Path) -> None:
        """Raise ValueError unless files are in this state, which `known_from` tells."""
        now = FileState.of(files)
        if now != self:
            raise ValueError(
                f"{files.name}: changed: got {now.size} bytes with SHA-256 {now.sha256[:12]}..; "
                f"allowed: {self.size} bytes with SHA-256 {self.sha256[:12]}.., as {known_from} tells"
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def file_names(folder: Path, under: str = "") -> list[str]:
    """Sorted names, from a folder on, of all files at any depth in it, or `under` a folder of it."""
    paths = sorted(path for path in (folder / under).rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def write_digests(folder: Path) -> None:
    """Write the digests of all files at any depth into a folder: digests.json.

    Raises
    ------
    OSError
        If a file cannot be read, or digests.json not be written.
    """
    digests = {name: sha256(folder / name) for name in file_names(folder) if name not in _LEFT_OUT}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def check_digests(folder: Path, names: Iterable[str]) -> bool:
    """Check that files are as they were when `write_digests` was called.

    Parameters
    ----------
    folder : Path
        Folder of the files.
    names : iterable of str
        Which of them, relative to the folder; those that are not there and have no digest are left out.

    Returns
    -------
    bool
        Whether there are digests; without them nothing is checked.

    Raises
    ------
    OSError
        If a file is missing.
    ValueError
        If a file is another one, or has no digest.
    """
    if not (folder / DIGESTS).is_file():
        return False
    digests = read_json(folder / DIGESTS)
    for name in names:
        path = folder / name
        if name not in digests and not path.is_file():
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {DIGESTS} names it")
        if sha256(path) != digests.get(name):
            raise ValueError(f"{path}: damaged or replaced: its SHA-256 is not that in {DIGESTS}")
    return True
