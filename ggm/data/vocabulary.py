"""What the tokens of a model mean: a tokenizer of text or of images, in the folder of its weights."""

from __future__ import annotations

import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ggm.data.images import tokenizers as image_tokenizers
from ggm.data.images.tokenizers import IMAGES, WEIGHTS, ImageTokenizer
from ggm.data.text import TOKENIZER, decode, read_tokenizer
from ggm.digests import check_digests, file_names
from ggm.files import write_text


class Vocabulary:
    """A tokenizer of text or of images, or none.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer, optional
        Of text.
    images : ImageTokenizer, optional
        Of images.
    folder : Path, optional
        Where both are read from when they are first asked for: only then need the packages that they use be
        installed.
    device : str
        Where a network that draws pictures is put.

    Examples
    --------
    >>> from ggm.data.images.tokenizers import GreyLevels
    >>> from ggm.data.vocabulary import Vocabulary
    >>> digits = Vocabulary(images=GreyLevels(size=8, levels=4))
    >>> digits.pictures(torch.zeros(2, 64, dtype=torch.int64)).shape
    torch.Size([2, 8, 8, 1])
    """

    def __init__(
        self,
        tokenizer: Any = None,
        images: ImageTokenizer | None = None,
        *,
        folder: Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._folder, self._device = folder, device
        if folder is None:
            self.tokenizer, self.images = tokenizer, images

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of text, or None."""
        assert self._folder is not None
        path = self._folder / TOKENIZER
        check_digests(self._folder, (TOKENIZER,))
        return read_tokenizer(path) if path.is_file() else None

    @cached_property
    def images(self) -> ImageTokenizer | None:
        """Tokenizer of images, or None."""
        assert self._folder is not None
        check_digests(self._folder, (IMAGES, *file_names(self._folder, WEIGHTS)))
        return image_tokenizers.read_tokenizer(self._folder, self._device)

    @property
    def has_texts(self) -> bool:
        """Whether tokens are text."""
        return self.tokenizer is not None if self._folder is None else (self._folder / TOKENIZER).is_file()

    @property
    def has_pictures(self) -> bool:
        """Whether tokens are images."""
        return self.images is not None if self._folder is None else (self._folder / IMAGES).is_file()

    def texts(self, tokens: torch.Tensor) -> list[str] | None:
        """Texts of tokens, int64 [N, L]; None if they are not text."""
        if self.tokenizer is None:
            return None
        return [decode(self.tokenizer, row) for row in tokens.tolist()]

    def pictures(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Pictures, uint8 [N, H, W, C] on the CPU, of tokens, int64 [N, L]; None if they are not images."""
        return None if self.images is None else self.images.decode(tokens)

    def check(self, vocab_size: int, length: int, folder: Path) -> None:
        """Raise ValueError if this is not the vocabulary of a model, which `folder` holds."""
        if self.tokenizer is not None and self.tokenizer.get_vocab_size() != vocab_size:
            raise ValueError(
                f"{folder / TOKENIZER}: got {self.tokenizer.get_vocab_size()} tokens; "
                f"allowed: {vocab_size}, the vocabulary of the model"
            )
        if self.images is None:
            return
        rows, columns = self.images.grid
        if (self.images.vocab_size, rows * columns) != (vocab_size, length):
            raise ValueError(
                f"{folder / IMAGES}: got {self.images.vocab_size} tokens on a grid of {rows} x {columns}; "
                f"allowed: {vocab_size} tokens, {length} positions, those of the model"
            )

    def save(self, folder: Path) -> None:
        """Write it beside the weights of a model, in place of that of another model.

        What is there goes when all is written anew: the tokenizer may have come from there.
        """
        if self._folder is not None and self._folder.is_dir() and self._folder.samefile(folder):
            return
        with tempfile.TemporaryDirectory(prefix=".vocabulary-", dir=folder) as made:
            self._write(Path(made))
            (folder / TOKENIZER).unlink(missing_ok=True)
            image_tokenizers.remove_tokenizer(folder)
            _move(Path(made), folder)

    def _write(self, folder: Path) -> None:
        if self._folder is not None:
            for name in (TOKENIZER, IMAGES, *file_names(self._folder, WEIGHTS)):
                copy(self._folder / name, folder / name)
            return
        if self.tokenizer is not None:
            write_text(folder / TOKENIZER, self.tokenizer.to_str())
        if self.images is not None:
            self.images.save(folder)


def copy(file: Path, to: Path) -> None:
    """Copy a file, if there is one and it is not there already."""
    if file.is_file() and not (to.exists() and to.samefile(file)):
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)


def _move(source: Path, folder: Path) -> None:
    """Move the files of a vocabulary; images.json last: if it is there, so are the others."""
    for name in (TOKENIZER, *file_names(source, WEIGHTS), IMAGES):
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(folder / name)
