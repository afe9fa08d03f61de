"""All metrics of a set of samples: what they need is checked and loaded before they are scored."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ggm.evaluation.diversity import diversity
from ggm.evaluation.images import FeatureNetwork, compare_images
from ggm.evaluation.mauve import MauveConfig, check_mauve, mauve
from ggm.evaluation.perplexity import LanguageModel, PerplexityConfig
from ggm.evaluation.samples import ImageShape, Samples
from ggm.extras import require

UNITS = ("scorer", "samples", "words", "characters")


@dataclass(frozen=True)
class ScoreConfig:
    """What is computed.

    Attributes
    ----------
    perplexity : PerplexityConfig or None
        Generative perplexity, of text.
    mauve : MauveConfig
        MAUVE, of text, if there is a reference.
    image : ImageShape or None
        Of samples that are images.
    fid_network : Path or None
        Network of FID, of images with a reference.
    unit : str or None
        What entropy and distinct-n count: tokens of the language model ("scorer"), of the system itself
        ("samples"), "words" between white space or "characters". None is the first of "scorer",
        "samples" and "words" that there is.
    device : str
        Where the network of FID runs.
    batch : int
        Images at a time.
    """

    perplexity: PerplexityConfig | None = None
    mauve: MauveConfig = MauveConfig()
    image: ImageShape | None = None
    fid_network: Path | None = None
    unit: str | None = None
    device: str = "cpu"
    batch: int = 8

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in UNITS:
            raise ValueError(f"--unit: got {self.unit!r}; allowed: {', '.join(UNITS)}")
        if self.unit == "scorer" and self.perplexity is None:
            raise ValueError("--unit: got 'scorer' without --model; allowed: with it")
        if self.perplexity is not None and self.image is not None:
            raise ValueError("--model: got a language model for images; allowed: without --grid")
        if self.fid_network is not None and self.image is None:
            raise ValueError("--fid-network: got a file without --grid; allowed: for images")


class Scoring:
    """Metrics that are ready to be computed.

    Parameters
    ----------
    config : ScoreConfig
        Which.
    reference : Samples or None
        What MAUVE, FID and the other distances compare with.

    Raises
    ------
    OSError, ValueError, MissingExtraError
        If a metric cannot be computed, for want of a package, a model or a reference.
    """

    def __init__(self, config: ScoreConfig, reference: Samples | None) -> None:
        self.config, self.reference = config, reference
        self.language_model: LanguageModel | None = None
        self.network: FeatureNetwork | None = None
        if config.fid_network is not None and config.image is not None:
            if reference is None:
                raise ValueError("--fid-network: got a file without a reference; allowed: with --reference")
            require("torchmetrics.image.fid", extra="eval")
            self.network = FeatureNetwork(config.fid_network, config.device, config.image)
        if reference is not None and config.image is None:
            if reference.texts is None:
                raise ValueError("--reference: got tokens; allowed: text, or with --grid images")
            check_mauve(config.mauve)
        if reference is not None and config.image is not None:
            image_tokens(reference, config.image, "--reference")
        if config.perplexity is not None:
            self.language_model = LanguageModel(config.perplexity)

    def score(self, samples: Samples, source: str, *, progress: bool = False) -> dict[str, Any]:
        """Metrics of samples.

        Parameters
        ----------
        samples : Samples
            At least one.
        source : str
            What messages call them.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        dict
            ``samples`` (number, tokens and their unit), ``generative_perplexity``, ``unigram_entropy``,
            ``distinct``, ``mauve`` and ``images``, None where they were not asked for.

        Raises
        ------
        ValueError
            If the samples are not what a metric takes.
        """
        if self.config.image is not None:
            return self._score_images(image_tokens(samples, self.config.image, source))
        encoded = self._encoded(samples, source)
        unit = self.config.unit or _default_unit(samples, encoded)
        units = _units(samples, unit, encoded, source)
        perplexity = None
        if self.language_model is not None and encoded is not None:
            perplexity = self.language_model.score(encoded, progress=progress)
        return {
            "samples": {"count": len(samples), "tokens": sum(map(len, units)), "unit": unit},
            "generative_perplexity": perplexity,
            **diversity(units),
            "mauve": self._mauve(samples, progress),
            "images": None,
        }

    def _score_images(self, images: torch.Tensor) -> dict[str, Any]:
        return {
            "samples": {"count": len(images), "tokens": images.numel(), "unit": "samples"},
            **dict.fromkeys(("generative_perplexity", "unigram_entropy", "distinct", "mauve")),
            "images": self._compare(images),
        }

    def _compare(self, images: torch.Tensor) -> dict[str, Any] | None:
        """Images, as tokens [N, L], beside the reference; None if there is none."""
        shape = self.config.image
        if self.reference is None or shape is None:
            return None
        return compare_images(
            images,
            image_tokens(self.reference, shape, "--reference"),
            shape,
            network=self.network,
            path=self.config.fid_network,
            batch=self.config.batch,
        )

    def _encoded(self, samples: Samples, source: str) -> list[list[int]] | None:
        if self.language_model is None:
            return None
        if samples.texts is None:
            raise ValueError(f"{source}: got tokens, --model reads text; allowed: with --tokenizer")
        return self.language_model.encode(samples.texts)

    def _mauve(self, samples: Samples, progress: bool) -> dict[str, Any] | None:
        if self.reference is None or self.reference.texts is None or samples.texts is None:
            return None
        return mauve(samples.texts, self.reference.texts, self.config.mauve, progress=progress)


def image_tokens(samples: Samples, shape: ImageShape, source: str) -> torch.Tensor:
    """Tokens of images, int64 [N, L].

    Raises
    ------
    ValueError
        If the samples are not tokens of such images.
    """
    if samples.tokens is None or len({len(row) for row in samples.tokens}) != 1:
        raise ValueError(
            f"{source}: got no tokens of one length; allowed with --grid: .npy, or .jsonl of tokens"
        )
    tokens = torch.as_tensor(samples.tokens)
    shape.check(tokens, source)
    return tokens


def _default_unit(samples: Samples, encoded: list[list[int]] | None) -> str:
    if encoded is not None:
        return "scorer"
    return "words" if samples.tokens is None else "samples"


def _units(
    samples: Samples, unit: str, encoded: list[list[int]] | None, source: str
) -> Sequence[Sequence[Hashable]]:
    if unit == "scorer":
        assert encoded is not None
        return encoded
    if unit == "samples":
        if samples.tokens is None:
            raise ValueError(
                f"{source}: got no tokens, --unit is 'samples'; allowed: words, characters, scorer"
            )
        return samples.token_lists()
    if samples.texts is None:
        raise ValueError(f"{source}: got no text, --unit is {unit!r}; allowed: samples, or with --tokenizer")
    return [text.split() for text in samples.texts] if unit == "words" else samples.texts
