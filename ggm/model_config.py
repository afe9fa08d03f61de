"""Configuration of a model: chain, network, objective, noise."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ggm.backbones import BackboneConfig, MaskedConfig
from ggm.chain import ChainConfig
from ggm.config import allow, build
from ggm.objective import DATA_FORMS, ObjectiveConfig


@dataclass(frozen=True)
class GGMConfig:
    """A model: everything but its weights.

    Attributes
    ----------
    vocab_size : int
        Tokens V.
    chain : ChainConfig
        Length, sweeps, schedule and visit order.
    backbone : MaskedConfig, HollowConfig or DenoiserConfig
        The network.
    objective : ObjectiveConfig
        The loss.
    masked_counts : tuple of int
        Positions K that a training pass predicts; training steps take turns. For a masked network a
        sampler that resamples K sites per step needs K among them. A hollow network learns exact
        conditionals whatever K is; L costs it little more than 1.
    frozen_share : float
        Share of training sequences in which a random set of positions is left clean, as in
        infilling.
    noise_probs : tuple of float or None
        Law pi of the noise, one probability per token, from 0, with sum 1 within 1e-3; None is uniform.
    predicts : str
        What the network learns at a position given the others. "state": the token of X_t. "data": the
        token of X_0, from which the known mixture with the noise makes that of X_t; the loss then has the
        data token as its only signal, and is "marginal" or "cross_entropy". A denoiser predicts the data.
    training_times : str
        Which sweeps of the chain a training step looks at. "uniform": all alike. "kept": in proportion to
        the mean share of data tokens left in them, so that most contexts tell something. The minimiser is
        the same, as every sweep has its own conditionals; a network with little time knows less of the
        times of much noise, which puzzles with few givens begin with.
    """

    vocab_size: int
    chain: ChainConfig
    backbone: BackboneConfig = field(default_factory=MaskedConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masked_counts: tuple[int, ...] = (1,)
    frozen_share: float = 0.0
    noise_probs: tuple[float, ...] | None = None
    predicts: Literal["state", "data"] = "state"
    training_times: Literal["uniform", "kept"] = "uniform"

    def __post_init__(self) -> None:
        allow(self, "vocab_size", self.vocab_size >= 1, "1 or more")
        length, counts = self.chain.length, self.masked_counts
        right = bool(counts) and all(1 <= count <= length for count in counts)
        allow(self, "masked_counts", right, f"1 to {length}")
        allow(self, "frozen_share", 0.0 <= self.frozen_share <= 1.0, "[0, 1]")
        allow(self, "predicts", self.predicts in ("state", "data"), "state, data")
        allow(self, "training_times", self.training_times in ("uniform", "kept"), "uniform, kept")
        try:
            self.backbone.check_length(self.chain.length)
        except ValueError as error:
            raise ValueError(f"backbone.{error}") from error
        if self.noise_probs is not None:
            _check_law(self.noise_probs)
        if self.predicts == "state" and self.backbone.sees_own_token:
            raise ValueError(f"predicts: got 'state' with a {self.backbone.kind}; allowed: data")
        if self.predicts == "data" and self.objective.form not in DATA_FORMS:
            allowed = ", ".join(DATA_FORMS)
            raise ValueError(
                f"objective.form: got {self.objective.form!r} with predicts: data; allowed: {allowed}"
            )

    @property
    def least_sites(self) -> int:
        """Fewest sites per step that the network has learnt to resample together."""
        return 1 if self.backbone.gives_all_conditionals else min(self.masked_counts)

    def check_noise(self) -> None:
        """Raise ValueError if the law of the noise has not a probability for each token.

        Whoever makes a model checks it: a configuration may be older than what is known of the data.
        """
        law = self.noise_probs
        if law is not None and len(law) != self.vocab_size:
            raise ValueError(
                f"noise_probs: got {len(law)} probabilities; allowed: {self.vocab_size}, one for each token"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, numbers and strings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GGMConfig:
        """Inverse of `to_dict`; lists serve for tuples, as JSON has them."""
        return build(cls, values)


def _check_law(probs: tuple[float, ...]) -> None:
    """Raise ValueError for what `ggm_kernels.NoiseLaw` refuses, too."""
    bad = [prob for prob in probs if not 0.0 <= prob <= 1.0]  # NaN, too
    if bad:
        raise ValueError(f"noise_probs: got {bad[0]}; allowed: 0 to 1")
    total = math.fsum(probs)
    if abs(total - 1.0) > 1e-3:
        raise ValueError(f"noise_probs: got a sum of {total:.6g}; allowed: 1 within 1e-3")
