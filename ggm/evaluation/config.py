"""Configuration of the metrics, and shapes of images: no torch is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ggm.config import allow

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp64", "bf16", "fp16"]
Unit = Literal["scorer", "samples", "words", "characters"]
Cut = Literal["paragraph", "line", "file"]


@dataclass(frozen=True)
class HeldOutConfig:
    """How held-out data are looked at.

    Attributes
    ----------
    sites_per_step : int
        Positions that are predicted together: those of the sampler.
    times : int
        Chain times, evenly spread over the groups of visits that the sampler makes; fewer if there are
        fewer groups.
    seed : int
        Of the noise: the same for all models of one chain.
    batch : int
        Sequences at a time.
    """

    sites_per_step: int
    times: int = 8
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        _check_counts(self)


@dataclass(frozen=True)
class LikelihoodConfig:
    """How closely the bound is estimated.

    Attributes
    ----------
    times : int
        Groups of visits that the likelihood bound looks at per sequence, spread evenly over the chain with a
        random start: each is an evaluation of the network. More of them make the standard error smaller,
        not the bound.
    sites_per_step : int
        Positions that the chain resamples together: 1, or for a masked network those that it has learnt to
        predict together. More of them are another chain, with a bound of its own.
    seed : int
        Of noise and times.
    batch : int
        Sequences at a time.
    """

    times: int = 64
    sites_per_step: int = 1
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        _check_counts(self)


@dataclass(frozen=True)
class PerplexityConfig:
    """Under which model, and how.

    Attributes
    ----------
    model : str
        Folder of a causal language model with its tokenizer, or a name on the Hugging Face Hub.
    precision : str
        Of weights and activations. The log-likelihood is computed from the logits in
        float32 or, with "fp64", float64.
    device : str
        Where.
    batch : int
        Samples at a time.
    max_length : int or None
        Tokens that are read of a sample, the model's start token included; None is the longest
        sequence of the model.
    start_token : bool
        Whether each sample is read after the model's start token, so that its first token is scored,
        too. The literature on discrete diffusion does not.
    """

    model: str
    precision: Precision = "fp32"
    device: str = "cpu"
    batch: int = 8
    max_length: int | None = None
    start_token: bool = False

    def __post_init__(self) -> None:
        allow(self, "precision", self.precision in get_args(Precision), ", ".join(get_args(Precision)))
        allow(self, "batch", self.batch >= 1, "1 or more")
        allow(self, "max_length", self.max_length is None or self.max_length >= 2, "2 or more")


@dataclass(frozen=True)
class MauveConfig:
    """How MAUVE is computed.

    Attributes
    ----------
    model : str
        What gives the features: a name of the Hugging Face Hub, or a folder. mauve-text takes those
        with "gpt2" or "bert" in the name only.
    max_length : int
        Tokens that are read of a text.
    device : str
        Where.
    batch : int
        Texts at a time.
    seed : int
        Of the clustering.
    """

    model: str = "gpt2-large"
    max_length: int = 1024
    device: str = "cpu"
    batch: int = 8
    seed: int = 25


@dataclass(frozen=True)
class ImageShape:
    """How a sequence of tokens is an image: row by row, the channels of a pixel together.

    Attributes
    ----------
    height, width : int
        Pixels.
    channels : int
        1 (grey) or 3 (red, green, blue).
    levels : int
        Token 0 is black, token levels - 1 full brightness; 2 to 256.
    """

    height: int
    width: int
    channels: int = 1
    levels: int = 256

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or self.channels not in (1, 3):
            got = (self.height, self.width, self.channels)
            raise ValueError(f"grid: got {got}; allowed: height and width of 1 or more, 1 or 3 channels")
        allow(self, "levels", 2 <= self.levels <= 256, "2 to 256")

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.height * self.width * self.channels

    def check(self, tokens: torch.Tensor, source: str) -> None:
        """Raise ValueError unless tokens [N, L] are images of this shape."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise ValueError(
                f"{source}: got sequences of {tokens.shape[-1]} tokens; "
                f"allowed: {self.length}, those of an image"
            )
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.levels:
            raise ValueError(f"{source}: got tokens outside; allowed: 0 to {self.levels - 1}")


@dataclass(frozen=True)
class ReadConfig:
    """How files of samples are read.

    Attributes
    ----------
    column : str
        Key of the text in a line of a .jsonl file.
    cut : str
        What one sample is in a .txt file: "paragraph" (texts between empty lines), "line" or "file".
    tokenizer : str or None
        tokenizer.json, or a name on the Hub, that turns tokens without text into text.
    """

    column: str = "text"
    cut: Cut = "paragraph"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        allow(self, "cut", self.cut in get_args(Cut), ", ".join(get_args(Cut)))


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
    unit: Unit | None = None
    device: str = "cpu"
    batch: int = 8

    def __post_init__(self) -> None:
        allow(self, "batch", self.batch >= 1, "1 or more")
        if self.unit is not None:
            allow(self, "unit", self.unit in get_args(Unit), ", ".join(get_args(Unit)))
        if self.unit == "scorer" and self.perplexity is None:
            raise ValueError("unit: got 'scorer' without `perplexity`; allowed: with it")
        if self.perplexity is not None and self.image is not None:
            raise ValueError("perplexity: got a language model for images; allowed: for text")
        if self.fid_network is not None and self.image is None:
            raise ValueError("fid_network: got a file without `image` or a folder; allowed: for images")


def _check_counts(config: HeldOutConfig | LikelihoodConfig) -> None:
    for name in ("times", "sites_per_step", "batch"):
        allow(config, name, getattr(config, name) >= 1, "1 or more")
