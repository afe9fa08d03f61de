"""Files of text that a name stands for: one file, all texts of a folder, or those that a pattern fits."""

from __future__ import annotations

import glob
from pathlib import Path

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
_MAGIC = frozenset("*?[")


def text_files(source: str) -> list[Path]:
    """Files of documents on this machine, sorted by name.

    Parameters
    ----------
    source : str
        A file, a folder (its .txt files, at any depth) or a pattern in which ``*``, ``?`` and
        ``[..]`` stand for parts of a name and ``**`` for folders; empty files are left out.

    Returns
    -------
    list of Path
        The files; empty if the name is that of nothing here, and may be one on the Hub.

    Raises
    ------
    FileNotFoundError
        If a folder or a pattern holds no files, or the file is of another kind.
    ValueError
        If all files are empty, or a pattern fits files of several kinds.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.txt") if file.is_file())
        missing = f"{source}: no .txt file in this folder"
    elif path.exists():
        found = [path]
        missing = ""
    elif _MAGIC & set(source):
        found = sorted(file for name in glob.glob(source, recursive=True) if (file := Path(name)).is_file())
        missing = f"{source}: no file fits this pattern"
    elif path.suffix in SUFFIXES:
        found = []
        missing = f"{source}: no such file of {', '.join(SUFFIXES)}, nor a name on the Hub"
    else:
        return []
    if not found:
        raise FileNotFoundError(missing)
    kinds = sorted({file.suffix for file in found})
    if unknown := [kind for kind in kinds if kind not in SUFFIXES]:
        raise FileNotFoundError(
            f"{source}: got a name that ends in {unknown[0]!r}; allowed: {', '.join(SUFFIXES)}"
        )
    if len(kinds) > 1:
        raise ValueError(f"{source}: got files of {', '.join(kinds)}; allowed: files of one kind")
    filled = [file for file in found if file.stat().st_size]
    if not filled:
        raise ValueError(
            f"{source}: got {'an empty file' if found == [path] else 'empty files'}; allowed: documents"
        )
    return filled
