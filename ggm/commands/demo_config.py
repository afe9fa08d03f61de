"""What a user of `ggm demo` may choose: no torch is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggm.config import allow

HELD_OUT = 360


@dataclass(frozen=True)
class DemoConfig:
    """Learn handwritten digits in minutes and draw what was learnt.

    They have 8 x 8 pixels and come with scikit-learn: no download. Trains a small Glauber generative model
    with a progress bar, draws samples, fills in the lower half of real digits that it has never seen, and
    writes three pictures: samples.png (real digits beside samples), chain.png (chains from noise to digit)
    and infill.png; and the model, for `ggm sample`. Prints the Frechet distance of samples and of held-out
    digits to the training set, the share of samples that copy a training image, and the likelihood
    bound of held-out digits.

    The three minutes of training are for two CPU cores; the rest takes less than two.

    --web shows the chain at work, on a page of this machine: paint a hole into a digit, or, with a
    --checkpoint of text, type a text with gaps. It trains only where there is no model yet.

    Attributes
    ----------
    seconds : float
        Seconds of training.
    seed : int
        Of weights, data order, noise and samples.
    out : Path
        Folder for pictures and model; made if it is not there.
    samples : int
        Digits to draw, and held-out digits to compare them with.
    web : bool
        Serve a page that shows a chain denoise (needs gradio).
    checkpoint : Path or None
        With `web`: folder of a checkpoint or a run of text or images (default: the model of this demo).
    port : int
        With `web`: port of this machine.
    """

    seconds: float = 180.0
    seed: int = 0
    out: Path = Path("outputs/demo")
    samples: int = HELD_OUT
    web: bool = False
    checkpoint: Path | None = None
    port: int = 7860

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds: got {self.seconds:g}; allowed: above 0")
        allow(self, "seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1")
        allow(self, "samples", 16 <= self.samples <= HELD_OUT, f"16 to {HELD_OUT}")
        allow(self, "port", 0 < self.port < 2**16, "1 to 65535")
        if self.checkpoint is not None and not self.web:
            raise ValueError("checkpoint: got a folder without `web`; allowed: with `web`")

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.out / "model"
