"""Training losses: binary classification of signal and noise at the visited position, or cross-entropy.

Every binary form is one call of `ggm_kernels.linear_sigmoid_bce` (or `sigmoid_bce`): a row is a
position to be predicted, with a list of candidate tokens and a signal and a noise weight for each.
Beside them stands softmax cross-entropy, with the same minimiser. The derivations are in
docs/mathematics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ggm.chain import log_odds
from ggm.config import allow
from ggm.mixture import noise_probs
from ggm_kernels import (
    NoiseLaw,
    Stream,
    corrupt,
    linear_cross_entropy,
    linear_sigmoid_bce,
    random_tokens,
    sigmoid_bce,
)

BINARY_FORMS = ("observed", "summed", "marginal")
FORMS = (*BINARY_FORMS, "cross_entropy")
# Of networks that predict the data: the token of X_t, which the others look at, is noise to them.
DATA_FORMS = ("marginal", "cross_entropy")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which of the losses with one minimiser is used.

    Attributes
    ----------
    form : str
        "observed": the paper's, the label drawn and one token looked at. "summed": summed over the
        label. "marginal": summed over the forward noise of the position, too, hence the least
        noisy. "cross_entropy": not a binary loss, but -log softmax(g) of the token of X_t, averaged
        as in "marginal". It needs all V logits, though never at once, and finds g up to a constant per
        context only.
    candidates : int or None
        Noise tokens drawn per row; None sums over the whole vocabulary, which is exact and right
        for small V. Not for "observed", which looks at one token, nor for "cross_entropy".
    shared_candidates : int or None
        Noise tokens drawn once a step for all rows, thousands for large V: one small matrix product. The
        noise of a row is then the mean over these and its own `candidates`, which "summed" may do
        without (None) and "marginal", whose signal is in part a mean over noise, may not. Forms as for
        `candidates`.
    noise_ratio : float or None
        nu, expected noise tokens per signal token. None is the chain's own eps / (1 - eps). Large
        values approach the gradient of maximum likelihood. Not for "observed", whose labels come
        from the chain, nor for "cross_entropy".
    """

    form: str = "marginal"
    candidates: int | None = None
    noise_ratio: float | None = None
    shared_candidates: int | None = None

    def __post_init__(self) -> None:
        allow(self, "form", self.form in FORMS, ", ".join(FORMS))
        for name in ("candidates", "shared_candidates"):
            count = getattr(self, name)
            allow(self, name, count is None or count >= 1, "None or 1 and more")
        ratio = self.noise_ratio
        allow(self, "noise_ratio", ratio is None or 0.0 < ratio < math.inf, "None or above 0, finite")
        if self.form in ("observed", "cross_entropy"):
            for name in ("noise_ratio", "candidates", "shared_candidates"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: got a value for form {self.form!r}; allowed: None")
        if self.form == "marginal" and self.shared_candidates is not None and self.candidates is None:
            raise ValueError(
                "candidates: got None for form 'marginal' with shared_candidates; allowed: 1 and more"
            )

    @property
    def sums_vocabulary(self) -> bool:
        """Whether the loss asks for the logit of every token, and not of a few."""
        return self.form != "observed" and self.candidates is None and self.shared_candidates is None

    @property
    def determines_calibration(self) -> bool:
        """Whether its minimiser has sum_a exp g = 1; cross-entropy leaves that open."""
        return self.form != "cross_entropy"


@dataclass(frozen=True)
class Visits:
    """What the loss needs to know of the positions to be predicted: R = B * K rows, K per sequence.

    Attributes
    ----------
    sample_ids : torch.Tensor
        Coordinate of each sequence, int64 [B].
    data : torch.Tensor
        Data tokens x0 there, int64 [B, K].
    current : torch.Tensor
        Tokens of X_t there, int64 [B, K].
    keep_prob : torch.Tensor
        alpha there, float64 [B, K].
    noise_rate : torch.Tensor
        eps of the step that visits each, float64 [B, K].
    """

    sample_ids: torch.Tensor
    data: torch.Tensor
    current: torch.Tensor
    keep_prob: torch.Tensor
    noise_rate: torch.Tensor


@dataclass(frozen=True)
class WeightedCandidates:
    """Arguments of the loss kernels: candidate tokens and weights [R, C], offset [R].

    `shared` are noise tokens [S] of all rows, `shared_noise` is their weight per row [R, 1].
    """

    tokens: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    offset: torch.Tensor
    shared: torch.Tensor | None = None
    shared_noise: torch.Tensor | None = None


def weighted_candidates(
    config: ObjectiveConfig,
    visits: Visits,
    vocab_size: int,
    *,
    seed: int,
    step: int,
    noise: NoiseLaw | None = None,
) -> WeightedCandidates:
    """Candidates and weights whose binary cross-entropy is the configured loss.

    Parameters
    ----------
    config : ObjectiveConfig
        Form, one of `BINARY_FORMS`, numbers of candidates and noise ratio.
    visits : Visits
        The positions to be predicted.
    vocab_size : int
        V.
    seed, step : int
        Coordinates of the draws; `step` must not be that of the noise in ``visits.current``,
        because "observed" draws its label from the corruption stream.
    noise : NoiseLaw, optional
        pi; None is uniform.

    Returns
    -------
    WeightedCandidates
        int64 and float32 tensors for R = B * K rows. The offset is the log-odds without -log pi(a).

    Raises
    ------
    ValueError
        If the form is none of these.

    Notes
    -----
    Source: the binary classification of arXiv 2405.17035; the sums and the noise ratio
    are our derivation (docs/mathematics.md).
    """
    if config.form not in BINARY_FORMS:
        raise ValueError(f"config.form: got {config.form!r}; allowed: {', '.join(BINARY_FORMS)}")
    draws: dict[str, Any] = {"seed": seed, "step": step, "noise": noise}
    if config.form == "observed":
        return _observed(visits, vocab_size, **draws)
    rate = visits.noise_rate.flatten()
    signal_total, noise_total, offset = 1.0 - rate, rate, log_odds(rate)
    if config.noise_ratio is not None:
        signal_total = torch.ones_like(rate)
        noise_total = torch.full_like(rate, config.noise_ratio)
        offset = -noise_total.log()
    tokens, share = _noise_candidates(config, visits, vocab_size, **draws)
    if config.form == "summed":
        first, first_share = visits.current.flatten(), torch.ones_like(rate)
    else:
        first, first_share = visits.data.flatten(), visits.keep_prob.flatten()
    signal = [first_share[:, None], (1.0 - first_share)[:, None] * share]
    nothing = torch.zeros_like(rate)[:, None]
    noise_share, shared, shared_noise = share, None, None
    if config.shared_candidates is not None:
        drawn = tokens.shape[1] + config.shared_candidates
        noise_share = torch.full_like(share, 1.0 / drawn)
        # No sequence's own: the same tokens for every batch and on every process of a step.
        nobody = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        shared = random_tokens(
            nobody, config.shared_candidates, vocab_size, stream=Stream.SHARED_CANDIDATES, **draws
        )[0]
        shared_noise = (noise_total / drawn)[:, None].float()
    return WeightedCandidates(
        tokens=torch.cat([first[:, None], tokens], dim=1),
        signal=(signal_total[:, None] * torch.cat(signal, dim=1)).float(),
        noise=torch.cat([nothing, noise_total[:, None] * noise_share], dim=1).float(),
        offset=offset.float(),
        shared=shared,
        shared_noise=shared_noise,
    )


def _observed(visits: Visits, vocab_size: int, **draws: Any) -> WeightedCandidates:
    """One forward step at the visited positions: its token and its label, the paper's loss."""
    keep_prob = (1.0 - visits.noise_rate).float()
    following, is_signal = corrupt(
        visits.current, keep_prob, vocab_size, sample_ids=visits.sample_ids, **draws
    )
    label = is_signal.flatten()[:, None].float()
    return WeightedCandidates(
        tokens=following.flatten()[:, None],
        signal=label,
        noise=1.0 - label,
        offset=log_odds(visits.noise_rate.flatten()).float(),
    )


def _noise_candidates(
    config: ObjectiveConfig, visits: Visits, vocab_size: int, **draws: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise tokens [R, C] and the share of each in the mean over pi, float64 [R, C]."""
    batch, sites = visits.data.shape
    rows, device = batch * sites, visits.data.device
    if config.candidates is None and config.shared_candidates is not None:
        none = torch.empty(rows, 0, dtype=torch.int64, device=device)
        return none, none.double()
    if config.candidates is None:
        every = torch.arange(vocab_size, device=device)
        share = noise_probs(draws["noise"], every, vocab_size)
        return every.expand(rows, -1), share.expand(rows, -1)
    count = sites * config.candidates
    tokens = random_tokens(visits.sample_ids, count, vocab_size, stream=Stream.CANDIDATES, **draws)
    tokens = tokens.view(rows, config.candidates)
    return tokens, torch.full_like(tokens, 1.0 / config.candidates, dtype=torch.float64)


def loss_from_hidden(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    candidates: WeightedCandidates,
    noise: NoiseLaw | None = None,
) -> torch.Tensor:
    """Loss per row when g is linear in hidden states: only the candidates' logits are computed.

    Parameters
    ----------
    hidden : torch.Tensor
        float [R, d].
    weight, bias : torch.Tensor
        Head: g = hidden @ weight.T + bias, [V, d] and [V].
    candidates : WeightedCandidates
        Of the R rows.
    noise : NoiseLaw, optional
        pi; None is uniform.

    Returns
    -------
    torch.Tensor
        float32 [R], differentiable in `hidden`, `weight` and `bias`.
    """
    return linear_sigmoid_bce(
        hidden,
        weight,
        candidates.tokens,
        candidates.signal,
        candidates.noise,
        bias=bias + minus_log_noise(weight.shape[0], noise, bias),
        offset=candidates.offset,
        shared_candidates=candidates.shared,
        shared_weight=candidates.shared_noise,
    )


def cross_entropy_from_hidden(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    visits: Visits,
    noise: NoiseLaw | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy of the token of X_t, averaged over the noise; no logits [R, V] are made.

    With h the log-sum-exp of g and alpha the probability of the data token x0, the loss is
    ``alpha (h - g[x0]) + (1 - alpha) (h - mean g)``, its mean over pi a product with one vector.

    Parameters
    ----------
    hidden : torch.Tensor
        float [R, d].
    weight, bias : torch.Tensor
        Head: g = hidden @ weight.T + bias, [V, d] and [V].
    visits : Visits
        Data tokens and alpha of the R rows.
    noise : NoiseLaw, optional
        pi; None is uniform.

    Returns
    -------
    torch.Tensor
        float32 [R], differentiable in `hidden`, `weight` and `bias`.
    """
    of_data, log_sum_exp = linear_cross_entropy(
        hidden, weight, visits.data.flatten(), bias=bias, return_log_sum_exp=True
    )
    share = visits.keep_prob.flatten().to(log_sum_exp.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if noise is None:
            mean_weight, mean_bias = weight.mean(dim=0), bias.mean()
        else:
            probs = noise.probs_on(weight.device).to(weight.dtype)
            mean_weight, mean_bias = probs @ weight, probs.to(bias) @ bias
        mean_logit = hidden.to(log_sum_exp.dtype) @ mean_weight.to(log_sum_exp.dtype) + mean_bias
    return share * of_data + (1.0 - share) * (log_sum_exp - mean_logit)


def loss_from_logits(
    logits: torch.Tensor, candidates: WeightedCandidates, noise: NoiseLaw | None = None
) -> torch.Tensor:
    """Loss per row from all logits g, float [R, V]; otherwise as `loss_from_hidden`."""
    shifted = logits + minus_log_noise(logits.shape[1], noise, logits)
    return sigmoid_bce(
        shifted,
        candidates.tokens,
        candidates.signal,
        candidates.noise,
        offset=candidates.offset,
        shared_candidates=candidates.shared,
        shared_weight=candidates.shared_noise,
    )


def minus_log_noise(vocab_size: int, noise: NoiseLaw | None, like: torch.Tensor) -> torch.Tensor:
    """-log pi(a) of every token to float32, [V] in the dtype and on the device of `like`.

    A token that noise never draws has infinite log-odds of being signal. It is given the smallest
    positive float32 probability instead, which keeps gradients finite.
    """
    if noise is None:
        return like.new_full((vocab_size,), math.log(vocab_size))
    # NoiseLaw keeps its logarithms on every device: nothing to compute or to copy in a step.
    least = math.log(torch.finfo(torch.float32).tiny)
    return -noise.log_probs(like.device).clamp_min(least).to(like)
