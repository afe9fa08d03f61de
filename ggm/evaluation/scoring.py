"""All metrics of a set of samples: what they need is checked and loaded before they are scored."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ggm.evaluation.config import ScoreConfig
from ggm.evaluation.diversity import diversity
from ggm.evaluation.image_distances import FeatureNetwork, ImageComparison
from ggm.evaluation.images import ImageSet
from ggm.evaluation.mauve import check_mauve, mauve
from ggm.evaluation.perplexity import LanguageModel
from ggm.evaluation.samples import Samples
from ggm.extras import require
from ggm.processes import ALONE, Processes


class Scoring:
    """Metrics that are ready to be computed.

    Parameters
    ----------
    config : ScoreConfig
        Which.
    reference : Samples, ImageSet or None
        What MAUVE, or FID and the other distances, compare with.
    processes : Processes
        Who shares out what the language model reads; the other metrics each of them computes.
    progress : bool
        Whether to show a bar while reference images are read.

    Raises
    ------
    OSError, ValueError, MissingExtraError
        If a metric cannot be computed, for want of a package, a model or a reference.
    """

    def __init__(
        self,
        config: ScoreConfig,
        reference: Samples | ImageSet | None,
        processes: Processes = ALONE,
        *,
        progress: bool = False,
    ) -> None:
        self.config, self.reference = config, reference
        self.language_model: LanguageModel | None = None
        self.comparison: ImageComparison | None = None
        network = self._network()
        if isinstance(reference, ImageSet):
            self.comparison = ImageComparison(reference, network, batch=config.batch, progress=progress)
        elif reference is not None:
            if reference.texts is None:
                raise ValueError("reference: got tokens; allowed: text, or with `grid` images")
            check_mauve(config.mauve)
        if config.perplexity is not None:
            self.language_model = LanguageModel(config.perplexity, processes)

    def score(self, samples: Samples | ImageSet, source: str, *, progress: bool = False) -> dict[str, Any]:
        """Metrics of samples.

        Parameters
        ----------
        samples : Samples or ImageSet
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
        if isinstance(samples, ImageSet):
            return self._score_images(samples, progress)
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

    def _network(self) -> FeatureNetwork | None:
        path, shape = self.config.fid_network, self.config.image
        if path is None or shape is None:
            return None
        if self.reference is None:
            raise ValueError("fid_network: got a file without a reference; allowed: with `reference`")
        require("torchmetrics.image.fid", extra="eval")
        return FeatureNetwork(path, self.config.device, shape)

    def _score_images(self, images: ImageSet, progress: bool) -> dict[str, Any]:
        counted = len(images) * images.shape.length if images.tokens is None else images.tokens.numel()
        unit = "pixels" if images.tokens is None else "samples"
        compared = None if self.comparison is None else self.comparison.compare(images, progress=progress)
        return {
            "samples": {"count": len(images), "tokens": counted, "unit": unit},
            **dict.fromkeys(("generative_perplexity", "unigram_entropy", "distinct", "mauve")),
            "images": compared,
        }

    def _encoded(self, samples: Samples, source: str) -> list[list[int]] | None:
        if self.language_model is None:
            return None
        if samples.texts is None:
            raise ValueError(
                f"{source}: got tokens, the language model reads text; allowed: with `tokenizer`"
            )
        return self.language_model.encode(samples.texts)

    def _mauve(self, samples: Samples, progress: bool) -> dict[str, Any] | None:
        reference = self.reference
        if not isinstance(reference, Samples) or reference.texts is None or samples.texts is None:
            return None
        return mauve(samples.texts, reference.texts, self.config.mauve, progress=progress)


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
                f"{source}: got no tokens, `unit` is 'samples'; allowed: words, characters, scorer"
            )
        return samples.token_lists()
    if samples.texts is None:
        raise ValueError(f"{source}: got no text, `unit` is {unit!r}; allowed: samples, or with `tokenizer`")
    return [text.split() for text in samples.texts] if unit == "words" else samples.texts
