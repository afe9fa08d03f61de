"""Text as tokens: vocabularies, documents, and packing into sequences of one length.

Every vocabulary is a `tokenizers.Tokenizer`, that of single characters too, so that one file,
tokenizer.json, tells how to read and write what a model was trained on.
"""

from __future__ import annotations

import codecs
import glob
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ggm.data.text_files import text_files
from ggm.extras import require
from ggm.files import read_text
from ggm.progress import library_bars

END = "<|endoftext|>"
TOKENIZER = "tokenizer.json"
_BPE_DOCUMENTS = 100_000
# What `datasets` reads each kind of file with; a .txt file is one document.
_READERS = {
    ".txt": ("text", {"sample_by": "document"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}


def pydoc_documents() -> list[str]:
    """English that every Python has: the language reference behind ``help()``, 0.4 MB, by topic.

    Line breaks and indentation become single blanks.
    """
    from pydoc_data.topics import topics

    return [" ".join(topics[name].split()) for name in sorted(topics)]


def pydoc_file() -> Path | None:
    """File of `pydoc_documents`, another one in every version of Python; None if it is in an archive."""
    from pydoc_data import topics

    path = Path(topics.__file__)
    return path if path.is_file() else None


def open_documents(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    streaming: bool = False,
    progress: bool = False,
) -> Any:
    """Documents of a local file or of a data set on the Hugging Face Hub.

    Parameters
    ----------
    source : str
        A .txt, .jsonl, .json or .parquet file, a folder of .txt files, a pattern of file names
        (`text_files`), or a name on the Hub.
    subset : str, optional
        Configuration of a data set on the Hub.
    split : str
        Split of a data set on the Hub.
    streaming : bool
        Whether to read as training goes, and to keep nothing on disk.
    progress : bool
        Whether `datasets` may show its bars.

    Returns
    -------
    datasets.Dataset or datasets.IterableDataset
        One row per document.

    Raises
    ------
    OSError, ValueError
        If there is none, or it cannot be read.
    """
    datasets = require("datasets", extra="train")
    files = text_files(source)
    if not files:
        try:
            with quiet_hub(), library_bars(progress):
                return datasets.load_dataset(source, subset, split=split, streaming=streaming)
        except OSError as error:
            raise FileNotFoundError(
                f"{source}: no file or folder, and the Hub does not give it: {error}"
            ) from error
    reader, options = _READERS[files[0].suffix]
    if reader != "parquet" and any(map(_has_mark, files)):
        options = {**options, "encoding": "utf-8-sig"}
    names = [glob.escape(str(path.resolve())) for path in files]  # they are patterns there
    try:
        with library_bars(progress):
            return datasets.load_dataset(
                reader, data_files=names, split="train", streaming=streaming, **options
            )
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{source}: not read as {reader}: {error.__cause__ or error}") from error


def _has_mark(path: Path) -> bool:
    """Whether a file begins with the byte order mark of UTF-8."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep what huggingface_hub tells of every retry off the screen: an error tells how it ended."""
    logging = require("huggingface_hub", extra="train").utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclass(frozen=True)
class Texts:
    """Texts of a column of `open_documents`, in its order, as often as they are asked for.

    Attributes
    ----------
    documents : datasets.Dataset or datasets.IterableDataset
        The rows.
    column : str
        Which column.
    source : str
        What errors call them: ValueError for a row without text, or one that cannot be read.
    """

    documents: Any
    column: str
    source: str

    def __iter__(self) -> Iterator[str]:
        try:
            for row in self.documents:
                yield _checked(row.get(self.column), self.column)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error


def _checked(text: Any, column: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"got {reprlib.repr(text)} in column {column!r}; allowed: text")
    return text


def char_tokenizer(documents: Iterable[str]) -> Any:
    """Vocabulary of all characters that occur, in order of their code points, and of `END`."""
    tokenizers = require("tokenizers", extra="train")
    characters = sorted(set().union(*documents))
    vocabulary = {character: i for i, character in enumerate([*characters, END])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return tokenizer


def bpe_tokenizer(documents: Iterable[str], vocab_size: int) -> Any:
    """Byte-level BPE trained on the documents; `END` is its token 0."""
    tokenizers = require("tokenizers", extra="train")
    bytes_ = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(bytes_):
        raise ValueError(f"bpe:{vocab_size}: allowed: bpe:N with N above {len(bytes_)}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def make_tokenizer(name: str, documents: Iterable[str]) -> Any:
    """Make or read a tokenizer.

    Parameters
    ----------
    name : str
        "char" and "bpe:N" are made from the documents (BPE from the first 100 000 of them);
        otherwise a tokenizer.json, a folder that holds one, or the name of one on the Hub, as "gpt2".
    documents : iterable of str
        Read only if needed.

    Returns
    -------
    tokenizers.Tokenizer
        The vocabulary.
    """
    tokenizers = require("tokenizers", extra="train")
    if name == "char":
        return char_tokenizer(documents)
    if made := re.fullmatch(r"bpe:(\d+)", name):
        return bpe_tokenizer(islice(documents, _BPE_DOCUMENTS), int(made[1]))
    path = Path(name)
    if path.is_dir():
        path = path / TOKENIZER
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer: there is no {TOKENIZER} in the folder {name!r}")
    if path.is_file():
        return read_tokenizer(path)
    try:
        with quiet_hub():
            return _whole(tokenizers.Tokenizer.from_pretrained(name))
    except Exception as error:  # what the library raises
        raise FileNotFoundError(
            f"tokenizer: {name!r} is no file, and the Hub does not give it: {error}"
        ) from error


def read_tokenizer(path: Path) -> Any:
    """Tokenizer of a tokenizer.json, which gives texts as they are: neither cut nor filled up.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is none.
    """
    tokenizers = require("tokenizers", extra="train")
    text = read_text(path)
    try:
        return _whole(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # what the library raises
        raise ValueError(f"{path}: not a tokenizer.json: {error}") from error


def _whole(tokenizer: Any) -> Any:
    """A tokenizer without the truncation and padding that it was saved with: documents are of any length."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text.

    Raises
    ------
    ValueError
        If the text holds what the vocabulary does not.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # what the library raises
        unknown = sorted({c for c in text if tokenizer.token_to_id(c) is None})
        raise ValueError(f"not in the vocabulary: {' '.join(map(repr, unknown))}") from error


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text of tokens, special ones included."""
    return tokenizer.decode(list(tokens), skip_special_tokens=False)


def end_token(tokenizer: Any, end: str) -> int:
    """Token that is put after every document."""
    token = tokenizer.token_to_id(end)
    if token is None:
        raise ValueError(f"data.end: got {end!r}; allowed: a token of the tokenizer")
    return token


def pack(tokenizer: Any, documents: Iterable[str], end: int, length: int) -> Iterator[list[int]]:
    """Sequences of one length: documents one after the other, each with its end; a short rest is dropped."""
    rest: list[int] = []
    for document in documents:
        rest += [*encode(tokenizer, document), end]
        whole = len(rest) // length * length
        for start in range(0, whole, length):
            yield rest[start : start + length]
        del rest[:whole]


@lru_cache(maxsize=2)
def _tokenizer_of(text: str) -> Any:
    return require("tokenizers", extra="train").Tokenizer.from_str(text)


def _pack_columns(
    documents: list[Any], column: str, tokenizer: str, end: int, length: int
) -> dict[str, list[list[int]]]:
    texts = (_checked(document, column) for document in documents)
    return {"tokens": list(pack(_tokenizer_of(tokenizer), texts, end, length))}


class PackedTokens:
    """Packed documents on disk, as `datasets` keeps them: ``tokens[ids]`` is int64 [B, L].

    Documents are packed in parts of 1000, so that the work is the same whatever came before, and
    is found again by the next run.
    """

    def __init__(
        self, texts: Texts, tokenizer: Any, end: int, length: int, *, progress: bool = False
    ) -> None:
        packing = {"tokenizer": tokenizer.to_str(), "end": end, "length": length}
        try:
            with library_bars(progress):
                packed = texts.documents.map(
                    _pack_columns,
                    batched=True,
                    input_columns=texts.column,
                    remove_columns=texts.documents.column_names,
                    fn_kwargs={"column": texts.column, **packing},
                    desc="packing",
                )
        except ValueError as error:
            raise ValueError(f"{texts.source}: {error}") from error
        self._rows = packed.with_format("numpy")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self._rows[ids.tolist()]["tokens"]
        return torch.stack([torch.tensor(row, dtype=torch.int64) for row in rows])


class TokenStream:
    """Packed documents without end, read as they are asked for, and from the start when they are over.

    The first `skipped` sequences of every round are left out.
    """

    def __init__(
        self, texts: Iterable[str], tokenizer: Any, end: int, length: int, *, skipped: int = 0
    ) -> None:
        self._texts, self._tokenizer, self._end = texts, tokenizer, end
        self._length, self._skipped = length, skipped

    def round(self) -> Iterator[torch.Tensor]:
        """Sequences, int64 [L] each, from the start to the end of the documents."""
        for row in islice(pack(self._tokenizer, self._texts, self._end, self._length), self._skipped, None):
            yield torch.tensor(row)

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            empty = True
            for row in self.round():
                empty = False
                yield row
            if empty:
                raise ValueError(f"data: got {self._skipped} sequences or fewer; allowed: more")
