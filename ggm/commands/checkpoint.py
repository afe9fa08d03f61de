"""A model to draw from, with its vocabulary if it is one of text or of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggm.data.images import tokenizers as image_tokenizers
from ggm.data.text import decode, read_tokenizer
from ggm.model import GGM
from ggm.training.checkpoints import TOKENIZER, check_files, find, read_config


@dataclass(frozen=True)
class Checkpoint:
    """A model, and what its tokens mean.

    Attributes
    ----------
    folder : Path
        Where it is.
    model : GGM
        With the averaged weights.
    tokenizer : tokenizers.Tokenizer or None
        For text.
    images : ImageTokenizer or None
        For images.
    """

    folder: Path
    model: GGM
    tokenizer: Any
    images: image_tokenizers.ImageTokenizer | None = None

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> Checkpoint:
        """Read the averaged weights of a checkpoint, or of the last one of a run.

        Raises
        ------
        OSError, ValueError
            If there is none, or its files do not belong together.
        """
        folder = find(path)
        check_files(folder, weights=False)
        read_config(folder)  # to tell what is wrong with it, which the library below does not
        model = GGM.from_pretrained(folder, map_location=device)
        tokenizer = read_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
        if tokenizer is not None and tokenizer.get_vocab_size() != model.config.vocab_size:
            raise ValueError(
                f"{folder / TOKENIZER}: got {tokenizer.get_vocab_size()} tokens; "
                f"allowed: {model.config.vocab_size}, the vocabulary of the model"
            )
        images = image_tokenizers.read_tokenizer(folder, device)
        if images is not None:
            _check_images(images, model, folder / image_tokenizers.IMAGES)
        return cls(folder, model, tokenizer, images)

    def texts(self, tokens: torch.Tensor) -> list[str] | None:
        """Texts of tokens [N, L]; None if the model is not one of text."""
        if self.tokenizer is None:
            return None
        return [decode(self.tokenizer, row) for row in tokens.tolist()]


def _check_images(images: image_tokenizers.ImageTokenizer, model: GGM, path: Path) -> None:
    rows, columns = images.grid
    if (images.vocab_size, rows * columns) != (model.config.vocab_size, model.chain.length):
        raise ValueError(
            f"{path}: got {images.vocab_size} tokens on a grid of {rows} x {columns}; allowed: "
            f"{model.config.vocab_size} tokens, {model.chain.length} positions, those of the model"
        )
