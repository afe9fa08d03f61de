"""Files that are read as text, and files and folders that are written as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_text(path: Path, errors: str = "strict") -> str:
    """Text of a file of UTF-8, with or without the byte order mark that some editors put before it.

    Parameters
    ----------
    path : Path
        The file.
    errors : str
        What becomes of bytes that are not UTF-8, as in `bytes.decode`.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Object of a JSON file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not an object of JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}; allowed: an object of JSON")
    return values


def write_text(path: Path, text: str) -> None:
    """Write a file, or leave the one that was there as it was; its folder is made.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name beside a file to write to: it takes the file's place at the end, or is removed if writing fails.

    It ends as the file does, for what is written by the ending of a name; the folder is made. A link stays
    one: what it leads to is replaced. What is no file, as a pipe or /dev/stdout, is written to as it is.

    Raises
    ------
    OSError
        If it cannot be written; it names `path`.
    """
    if _is_written_as_it_is(path):
        with writing(path):
            yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    final = path.resolve()
    aside = final.with_name(f".{final.stem}-{os.getpid()}{final.suffix}")
    try:
        with writing(path, aside):
            yield aside
            aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)


def _is_written_as_it_is(path: Path) -> bool:
    return path.parts[1:2] in (("dev",), ("proc",)) or (path.exists() and not path.is_file())


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Folder beside another one to write files to: at the end they move there, or go if writing fails.

    The other folder is made; files that it has already stay, but those of the same names.

    Raises
    ------
    OSError
        If they cannot be written; it names `folder`.
    """
    final = folder.resolve()
    aside = final.with_name(f".{final.name}-{os.getpid()}")
    try:
        with writing(folder, aside):
            aside.mkdir(parents=True)
            yield aside
            if not final.exists():
                aside.rename(final)
                return
            for path in sorted(aside.iterdir()):
                path.replace(final / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, or made, before the work whose results go there.

    Raises
    ------
    OSError
        If not.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: no permission to write into {existing}")


def check_replaceable(name: str, path: Path) -> None:
    """Check that `replacing` can write a file, before the work whose result it is; messages call it `name`.

    Raises
    ------
    OSError
        If not.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{name}: got the folder {path}; allowed: the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {path.parent}")
    if _is_written_as_it_is(path):
        return
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: no permission to write into {folder}")


@contextmanager
def writing(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Name a file in errors of writing to it: of a full disk the system does not tell where.

    `aside` is the name under which it is written: errors that name that one, or a file in it, name `path`.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and (aside is None or not str(error.filename).startswith(str(aside))):
            raise
        raise OSError(f"{path}: could not be written: {error.strerror or error}") from error
