"""The data sets that a configuration can name."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy
import torch

from ggm.config import allow
from ggm.data import text
from ggm.data.batches import Tokens
from ggm.data.digits import SIDE, load_digits
from ggm.data.held_out import HeldOutBy, check_held_out, split
from ggm.data.images.files import open_images
from ggm.data.images.token_cache import cached_tokens
from ggm.data.images.tokenizers import GreyLevels, ImageTokenizer, VQTokenizer, open_vq
from ggm.data.text_files import text_files
from ggm.digests import Files


@dataclass(frozen=True)
class DigitsData:
    """The 8 x 8 digits of scikit-learn: sequences of 64 grey levels."""

    kind: Literal["digits"] = "digits"
    levels: int = 4
    held_out: int = 360


@dataclass(frozen=True)
class PydocData:
    """English that every Python has (`ggm.data.text.pydoc_documents`).

    Attributes
    ----------
    tokenizer : str
        "char", "bpe:N", or any other as in `TextData`.
    held_out : int
        Sequences kept for evaluation.
    held_out_by : str
        Whether these are drawn at "random", always the same, or the "first" ones.
    """

    kind: Literal["pydoc"] = "pydoc"
    tokenizer: str = "char"
    held_out: int = 64
    held_out_by: HeldOutBy = "random"


@dataclass(frozen=True)
class TextData:
    """Text of a local file or of the Hugging Face Hub.

    Attributes
    ----------
    source : str
        A .txt, .jsonl, .json or .parquet file, a folder of .txt files (at any depth, each a document), a
        pattern such as ``books/**/*.txt``, or a name on the Hub.
    subset, split : str
        Configuration and split of a data set on the Hub.
    column : str
        Column that holds the text.
    tokenizer : str
        "char"; "bpe:N", byte pairs merged until there are N tokens, learned from the first 100,000
        documents; a tokenizer.json, a folder that holds one, or a name on
        the Hub, as "gpt2".
    end : str
        Token after every document.
    streaming : bool
        Whether to read as training goes: in the order of the source, nothing kept on disk. To
        resume, what was read before is read again.
    held_out : int
        Sequences kept for evaluation.
    held_out_by : str
        Whether these are drawn at "random", always the same, or the "first" ones, as of a stream in
        any case.
    """

    source: str
    kind: Literal["text"] = "text"
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "char"
    end: str = text.END
    streaming: bool = False
    held_out: int = 64
    held_out_by: HeldOutBy = "random"

    def __post_init__(self) -> None:
        allow(self, "held_out", self.held_out >= 1, "1 or more")
        if self.streaming and self.tokenizer == "char":
            # The whole stream would have to be read for its characters.
            raise ValueError("tokenizer: got 'char' for a stream; allowed: bpe:N, a file, a name on the Hub")


@dataclass(frozen=True)
class TokenData:
    """Sequences that are tokens already, as those of images: an integer array [N, L] in a .npy file.

    Attributes
    ----------
    source : str
        The file. It is not read into memory as a whole.
    vocab_size : int
        Tokens there are.
    held_out : int
        Sequences kept for evaluation.
    held_out_by : str
        Whether these are drawn at "random", always the same, or the "first" ones.
    """

    source: str
    vocab_size: int
    kind: Literal["tokens"] = "tokens"
    held_out: int = 64
    held_out_by: HeldOutBy = "random"


@dataclass(frozen=True)
class ImageData:
    """Images, each a square grid of tokens, row by row.

    Attributes
    ----------
    source : str
        A folder of .png, .jpg, .jpeg and .webp files at any depth, a .parquet file, or a name on the
        Hub.
    tokenizer : str
        A `diffusers.VQModel`: a folder, as `ggm train-vq` writes it, or a name on the Hub. Its
        vectors are the vocabulary.
    size : int
        Pixels of a side: the shorter side of an image is brought to it, then the middle is taken.
        L is (size / downsampling)^2.
    subfolder : str
        Where in `tokenizer` the VQModel is.
    normalize : bool
        Whether the VQModel takes pixels in [-1, 1], as most do, or in [0, 1].
    subset, split, column : str
        Configuration, split and image column of a data set on the Hub.
    cache : str
        Folder where tokens are kept, so that they are made once.
    held_out : int
        Images kept for evaluation, chosen at random, always the same.
    """

    source: str
    tokenizer: str
    size: int
    kind: Literal["images"] = "images"
    subfolder: str | None = None
    normalize: bool = True
    subset: str | None = None
    split: str = "train"
    column: str = "image"
    cache: str = "outputs/image-tokens"
    held_out: int = 64


@dataclass(frozen=True)
class Data:
    """What a model is trained on.

    Attributes
    ----------
    train : Tokens or TokenStream
        Training sequences.
    held_out : torch.Tensor
        Others, int64 [M, L].
    vocab_size : int
        V.
    tokenizer : tokenizers.Tokenizer or None
        For text.
    images : ImageTokenizer or None
        For images.
    file : Path or None
        File that all sequences come from, if there is one: for images that of their tokens.
    """

    train: Tokens | text.TokenStream
    held_out: torch.Tensor
    vocab_size: int
    tokenizer: Any = None
    images: ImageTokenizer | None = None
    file: Path | None = None


DataConfig = PydocData | DigitsData | TextData | TokenData | ImageData


def source_files(config: DataConfig) -> Files | None:
    """Files that a data set is read from. None if it is not; for images their tokens are one.

    Raises
    ------
    OSError, ValueError
        If a folder or a pattern holds no text.
    """
    if isinstance(config, PydocData):
        path = text.pydoc_file()
        return None if path is None else Files.single(path)
    if isinstance(config, TokenData) and Path(config.source).is_file():
        return Files.single(Path(config.source))
    if isinstance(config, TextData) and (found := text_files(config.source)):
        return Files(Path(config.source), tuple(found))
    return None


def load_data(
    config: DataConfig,
    length: int,
    tokenizer: Any = None,
    images: ImageTokenizer | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Data:
    """Load a data set.

    Parameters
    ----------
    config : DataConfig
        Which.
    length : int
        Tokens per sequence L.
    tokenizer : tokenizers.Tokenizer, optional
        To be used in place of the one that the configuration names: that of a checkpoint.
    images : ImageTokenizer, optional
        Likewise.
    device : torch.device or str
        Where images become tokens.
    progress : bool
        Whether to show bars while data are read, and images become tokens.

    Returns
    -------
    Data
        Sequences and vocabulary.

    Raises
    ------
    ValueError, OSError
        If it cannot be had, does not fit the length, or is too small.
    """
    if isinstance(config, DigitsData):
        if length != SIDE * SIDE:
            raise ValueError(f"model.chain.length: got {length}; allowed for digits: {SIDE * SIDE}")
        digits = load_digits(config.levels, config.held_out)
        return Data(digits.train, digits.held_out, digits.levels, images=GreyLevels(SIDE, digits.levels))
    if isinstance(config, TokenData):
        return _load_tokens(config, length)
    if isinstance(config, ImageData):
        return _load_images(config, length, images, device, progress)
    if isinstance(config, PydocData):
        return _load_pydoc(config, length, tokenizer)
    return _load_text(config, length, tokenizer, progress)


def _load_pydoc(config: PydocData, length: int, tokenizer: Any) -> Data:
    documents = text.pydoc_documents()
    tokenizer = tokenizer or text.make_tokenizer(config.tokenizer, documents)
    end = text.end_token(tokenizer, text.END)
    rows = torch.tensor(list(text.pack(tokenizer, documents, end, length)))
    held_out, train = split(rows, config.held_out, config.held_out_by)
    return Data(train, held_out, tokenizer.get_vocab_size(), tokenizer)


def _load_text(config: TextData, length: int, tokenizer: Any, progress: bool) -> Data:
    documents = text.open_documents(
        config.source,
        subset=config.subset,
        split=config.split,
        streaming=config.streaming,
        progress=progress,
    )
    columns = documents.column_names
    if columns is not None and config.column not in columns:
        raise ValueError(f"data.column: got {config.column!r}; allowed: {', '.join(columns)}")
    texts = text.Texts(documents, config.column, config.source)
    tokenizer = tokenizer or text.make_tokenizer(config.tokenizer, texts)
    end = text.end_token(tokenizer, config.end)
    packing = (texts, tokenizer, end, length)
    vocab_size = tokenizer.get_vocab_size()
    if config.streaming:
        # One more than asked for, and one round at most: something must be left to train on.
        first = list(itertools.islice(text.TokenStream(*packing).round(), config.held_out + 1))
        check_held_out(config.held_out, len(first))
        stream = text.TokenStream(*packing, skipped=config.held_out)
        return Data(stream, torch.stack(first[:-1]), vocab_size, tokenizer)
    held_out, train = split(
        text.PackedTokens(*packing, progress=progress), config.held_out, config.held_out_by
    )
    return Data(train, held_out, vocab_size, tokenizer)


def _load_tokens(config: TokenData, length: int) -> Data:
    try:
        rows = numpy.load(config.source, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{config.source}: not a .npy file of numbers") from error
    if rows.ndim != 2 or rows.shape[1] != length or rows.dtype.kind not in "iu":
        raise ValueError(
            f"{config.source}: got {rows.dtype} {list(rows.shape)}; allowed: integers [N, {length}]"
        )
    held_out, train = split(
        _ArrayTokens(rows, config.vocab_size, config.source), config.held_out, config.held_out_by
    )
    return Data(train, held_out, config.vocab_size, file=Path(config.source))


def _load_images(
    config: ImageData,
    length: int,
    tokenizer: ImageTokenizer | None,
    device: torch.device | str,
    progress: bool,
) -> Data:
    images = open_images(
        config.source, subset=config.subset, split=config.split, column=config.column, progress=progress
    )
    if tokenizer is None:
        tokenizer = open_vq(
            config.tokenizer,
            config.size,
            subfolder=config.subfolder,
            normalize=config.normalize,
            progress=progress,
        )
    if not isinstance(tokenizer, VQTokenizer) or tokenizer.size != config.size:
        raise ValueError(f"data.size: got {config.size}; allowed: {tokenizer.size}, that of the run")
    height, width = tokenizer.grid
    if length != height * width:
        raise ValueError(
            f"model.chain.length: got {length}; allowed: {height * width}, the {height} x {width} tokens "
            f"of images of size {config.size}"
        )
    path = cached_tokens(images, tokenizer, Path(config.cache), device=device, progress=progress)
    # They are shuffled already.
    tokens = TokenData(str(path), tokenizer.vocab_size, held_out=config.held_out, held_out_by="first")
    return replace(_load_tokens(tokens, length), images=tokenizer)


class _ArrayTokens:
    """Rows of an array that may lie on disk, checked as they are read."""

    def __init__(self, rows: Any, vocab_size: int, source: str) -> None:
        self._rows, self._vocab_size, self._source = rows, vocab_size, source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        tokens = torch.from_numpy(self._rows[ids.numpy()].astype("int64"))
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise ValueError(f"{self._source}: got tokens outside; allowed: 0 to {self._vocab_size - 1}")
        return tokens
