"""Samples of any system, from a file: texts, tokens, or both."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from ggm.data.text import decode, make_tokenizer
from ggm.evaluation.config import ReadConfig
from ggm.files import read_text

# What one sample is in a .txt file, and how such a file is cut.
TXT_CUTS = {"paragraph": re.compile(r"\n(?:[ \t]*\n)+"), "line": re.compile(r"\n"), "file": None}
_SUFFIXES = (".jsonl", ".txt", ".npy")


@dataclass(frozen=True)
class Samples:
    """What is scored.

    Attributes
    ----------
    texts : list of str or None
        Texts, if they are text.
    tokens : torch.Tensor or list of list of int, or None
        Tokens of the system that drew them, if they are known: int64 [N, L] where all have one length.
    """

    texts: list[str] | None = None
    tokens: torch.Tensor | list[list[int]] | None = None

    def __len__(self) -> int:
        parts = self.texts if self.texts is not None else self.tokens
        return 0 if parts is None else len(parts)

    def token_lists(self) -> list[list[int]]:
        """Tokens of every sample, which must be known."""
        assert self.tokens is not None
        return self.tokens.tolist() if isinstance(self.tokens, torch.Tensor) else self.tokens


def read_samples(path: Path, config: ReadConfig) -> Samples:
    """Read samples.

    Parameters
    ----------
    path : Path
        .jsonl: a line of JSON per sample, with a text, with its tokens under ``tokens``, or with both.
        .txt: texts. .npy: integer array of tokens, [N, L] or of more axes, which are flattened.
    config : ReadConfig
        How.

    Returns
    -------
    Samples
        At least one.

    Raises
    ------
    OSError, ValueError
        If the file is missing, empty, or not what its ending says.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: got a name that ends in {path.suffix!r}; allowed: {', '.join(_SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    read = {".jsonl": _read_lines, ".txt": _read_text, ".npy": _read_array}[path.suffix]
    samples = read(path, config)
    if not len(samples):
        raise ValueError(f"{path}: got no samples; allowed: one or more")
    if samples.texts is None and config.tokenizer is not None:
        return Samples(_decoded(samples.token_lists(), config.tokenizer, path), samples.tokens)
    return samples


def _read_lines(path: Path, config: ReadConfig) -> Samples:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        return Samples()
    has_text, has_tokens = config.column in rows[0], "tokens" in rows[0]
    if not has_text and not (has_tokens and config.column == "text"):
        raise ValueError(f"column: got {config.column!r}; allowed: {', '.join(rows[0]) or 'no key is there'}")
    return Samples(
        _column(rows, config.column, path) if has_text else None,
        _token_lists(_column(rows, "tokens", path), path) if has_tokens else None,
    )


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:  # whose own words count lines, too, from this one
        raise ValueError(f"{where}, column {error.colno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: JSON that cannot be read: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: got {type(row).__name__}; allowed: an object of JSON")
    return row


def _column(rows: list[dict[str, Any]], key: str, path: Path) -> list[Any]:
    expected = list if key == "tokens" else str
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(key), expected):
            got = type(row[key]).__name__ if key in row else "no such key"
            kind = "a list" if expected is list else "text"
            raise ValueError(f"{path}, sample {number}, key {key!r}: got {got}; allowed: {kind}")
    return [row[key] for row in rows]


def _token_lists(column: list[list[Any]], path: Path) -> list[list[int]]:
    for number, tokens in enumerate(column, start=1):
        if not all(type(token) is int and token >= 0 for token in tokens):
            raise ValueError(f"{path}, sample {number}, key 'tokens': allowed: integers of 0 and more")
    return column


def _read_text(path: Path, config: ReadConfig) -> Samples:
    text = read_text(path)
    cut = TXT_CUTS[config.cut]
    parts = [text] if cut is None else cut.split(text)
    # A file ends with a line break, which is none of a text's own.
    parts = [part.strip("\n") for part in parts]
    return Samples([part for part in parts if part])


def _read_array(path: Path, config: ReadConfig) -> Samples:
    try:
        array = numpy.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers") from error
    if not isinstance(array, numpy.ndarray) or array.ndim < 2 or array.dtype.kind not in "iu":
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, numpy.ndarray) else "several arrays"
        raise ValueError(f"{path}: got {got}; allowed: integers [N, L]")
    if array.size and array.min() < 0:
        raise ValueError(f"{path}: got negative tokens; allowed: 0 and more")
    rows = array.reshape(len(array), math.prod(array.shape[1:]))
    return Samples(tokens=torch.from_numpy(rows.astype(numpy.int64)))


def _decoded(tokens: list[list[int]], name: str, path: Path) -> list[str]:
    if name == "char" or name.startswith("bpe:"):
        raise ValueError(f"tokenizer: got {name!r}; allowed: a tokenizer.json or a name on the Hub")
    tokenizer = make_tokenizer(name, ())
    size = tokenizer.get_vocab_size()
    largest = max((token for row in tokens for token in row), default=0)
    if largest >= size:
        raise ValueError(f"{path}: got token {largest}; allowed: 0 to {size - 1}, those of `tokenizer`")
    return [decode(tokenizer, row) for row in tokens]
