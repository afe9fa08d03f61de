"""A model to draw from, with its vocabulary if it is one of text or of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggm.data.images import tokenizers as image_tokenizers
from ggm.model import GGM
from ggm.training.checkpoints import check_files, find, read_config


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
        vocabulary = model.vocabulary
        vocabulary.check(model.config.vocab_size, model.chain.length, folder)
        return cls(folder, model, vocabulary.tokenizer, vocabulary.images)

    def texts(self, tokens: torch.Tensor) -> list[str] | None:
        """Texts of tokens [N, L]; None if the model is not one of text."""
        return self.model.vocabulary.texts(tokens)
