"""Images of a checkpoint and of the run that it is of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ggm.data.images.files import Images, open_images
from ggm.data.images.token_cache import picture_order
from ggm.data.images.tokenizers import ImageTokenizer, VQTokenizer
from ggm.data.sources import Data, ImageData
from ggm.data.text import TokenStream
from ggm.evaluation.images import ImageSet, decoded_images, grid_images, picture_images
from ggm.evaluation.samples import ImageShape, Samples
from ggm.training.config import RunConfig


@dataclass(frozen=True)
class RunImages:
    """How sequences of a model are images, and which images it was trained on.

    Attributes
    ----------
    shape : ImageShape
        Of the images.
    tokenizer : ImageTokenizer or None
        What decodes tokens; None if they are levels.
    run : RunConfig or None
        The run, if it is known.
    data : Data or None
        Its data.
    """

    shape: ImageShape
    tokenizer: ImageTokenizer | None
    run: RunConfig | None
    data: Data | None

    def of_tokens(self, tokens: torch.Tensor, source: str) -> ImageSet:
        """Images of tokens, int64 [N, L]."""
        if isinstance(self.tokenizer, VQTokenizer):
            return decoded_images(tokens, self.tokenizer)
        return grid_images(Samples(tokens=tokens), self.shape, source)

    def training(self, count: int) -> ImageSet | None:
        """The first `count` training images, or all; None if they are not known."""
        if self.data is None or isinstance(self.data.train, TokenStream):
            return None
        rows = self.data.train[torch.arange(min(len(self.data.train), count))]
        return self._real(rows, len(self.data.held_out), "training data")

    def held_out(self, count: int) -> ImageSet:
        """The first `count` held-out images, or all; data must be known."""
        assert self.data is not None
        return self._real(self.data.held_out[:count], 0, "held-out data")

    def _real(self, rows: torch.Tensor, first: int, source: str) -> ImageSet:
        """Images of data: the pictures themselves where there are any, not what tokens keep of them."""
        if self._pictures is None:
            return self.of_tokens(rows, source)
        order = picture_order(len(self._pictures))[first : first + len(rows)]
        return picture_images(self._pictures, order, self.shape, rows)

    @cached_property
    def _pictures(self) -> Images | None:
        data = None if self.run is None else self.run.data
        if not isinstance(data, ImageData):
            return None
        return open_images(data.source, subset=data.subset, split=data.split, column=data.column)
