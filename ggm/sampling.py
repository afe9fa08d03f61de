"""The reverse process: from pure noise at time T back to data at time 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from ggm.noising import Chain
from ggm.progress import progress_bar
from ggm_kernels import NoiseLaw, Stream, glauber_step, linear_glauber_step, random_tokens


class LinearLogits(NamedTuple):
    """Logits hidden [B, K, d] @ weight [V, d].T + bias [V] that were not multiplied out."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class Conditionals(Protocol):
    """Logits g of the law of X_t at some positions, given X_t at all the others."""

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, time: int
    ) -> torch.Tensor | LinearLogits:
        """Logits at positions [K] of tokens [B, L] at time t: float [B, K, V], or their factors.

        The tokens that stand at `positions` must not influence the result.
        """
        ...


@dataclass(frozen=True)
class SamplingConfig:
    """How the reverse process is run.

    Attributes
    ----------
    sites_per_step : int
        Consecutive visits of the chain K that are resampled together, from one evaluation of the
        conditionals. 1 is exact; more treats the K positions as independent given the others.
    keep_or_replace : bool
        Whether a token is first kept with the classifier's probability that it is signal (the
        posterior of the chain) rather than always resampled (heat bath). Equally exact.
    temperature : float
        Divides the logits of a draw.
    top_k, top_p, min_p : optional
        Filters of a draw, as in `ggm_kernels.glauber_step`.
    """

    sites_per_step: int = 1
    keep_or_replace: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.sites_per_step < 1:
            raise ValueError(f"sites_per_step: got {self.sites_per_step}; allowed: 1 or more")


@dataclass(frozen=True)
class SampleResult:
    """What a run of the reverse process gives.

    Attributes
    ----------
    tokens : torch.Tensor
        Samples, int64 [B, L].
    network_evaluations : int
        Evaluations of the conditionals, each on the whole batch.
    seconds : float
        Wall-clock time.
    """

    tokens: torch.Tensor
    network_evaluations: int
    seconds: float


class VisitGroup(NamedTuple):
    """Visits resampled together: steps [K], positions [K], and the chain time they lead back to."""

    time: int
    steps: torch.Tensor
    positions: torch.Tensor


def visit_groups(
    chain: Chain, sites_per_step: int, visited: torch.Tensor | None = None
) -> Iterator[VisitGroup]:
    """Visits of the chain in groups that stay within a sweep, from the last group to the first.

    Parameters
    ----------
    chain : Chain
        Visit order.
    sites_per_step : int
        Largest size of a group.
    visited : torch.Tensor, optional
        bool [L]: the positions to be visited; the others are left out. None is all.

    Yields
    ------
    VisitGroup
        Within a group no position occurs twice, and none is visited by the steps from `time` up to
        the last of the group but by the group itself: all its conditionals are those of X_time.
    """
    if visited is not None and not visited.any():
        return
    order = chain.positions.view(chain.sweeps, chain.length)
    for sweep in reversed(range(chain.sweeps)):
        ranks = torch.arange(chain.length)
        if visited is not None:
            ranks = ranks[visited.cpu()[order[sweep]]]
        for part in reversed(ranks.split(sites_per_step)):
            steps = sweep * chain.length + part
            yield VisitGroup(int(steps[0]), steps, order[sweep, part])


def initial_tokens(
    sample_ids: torch.Tensor,
    length: int,
    vocab_size: int,
    *,
    seed: int,
    noise: NoiseLaw | None = None,
) -> torch.Tensor:
    """Pure noise X_T ~ pi^L, int64 [B, L], for sample ids [B]."""
    return random_tokens(sample_ids, length, vocab_size, stream=Stream.INITIAL, seed=seed, noise=noise)


@torch.inference_mode()
def denoise(
    conditionals: Conditionals,
    chain: Chain,
    tokens: torch.Tensor,
    config: SamplingConfig,
    *,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    progress: bool = False,
    observe: Callable[[int, torch.Tensor], None] | None = None,
) -> SampleResult:
    """Run the chain backwards, t = T - 1 .. 0.

    Parameters
    ----------
    conditionals : Conditionals
        Logits of P(X_{t,i} = . | X_{t,-i}): a network, or any callable.
    chain : Chain
        Visit order and noise rates.
    tokens : torch.Tensor
        State at time T, int32 or int64 [B, L]; not written to.
    config : SamplingConfig
        Group size, process, temperature and filters.
    seed : int
        Key of the noise.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence, int64 [B]: with them a sample does not depend on the batch it
        is in.
    frozen : torch.Tensor, optional
        bool [B, L]: positions that keep their tokens (infilling).
    noise : NoiseLaw, optional
        pi in the keep decision; None is uniform.
    progress : bool
        Whether to show a progress bar (needs tqdm).
    observe : callable, optional
        Called with (T, tokens) at the start, then with (t, X_t) after every group of steps. The
        tensor is the state itself: copy what must last.

    Returns
    -------
    SampleResult
        Samples of X_0, with what they cost.

    Notes
    -----
    If the conditionals are exact, the state at time T has the law of X_T and one site
    is resampled per step, then the state at every t has the law of X_t. Source: the time-dependent
    Glauber dynamics of arXiv 2405.17035; groups and keep-or-replace are our derivation
    (docs/mathematics.md).
    """
    tokens = tokens.clone()
    visited = None if frozen is None else ~frozen.all(dim=0)
    groups = list(visit_groups(chain, config.sites_per_step, visited))
    started = time.perf_counter()
    if observe is not None:
        observe(chain.steps, tokens)
    with progress_bar(progress, len(groups), "sampling", unit="step") as bar:
        for group in groups:
            positions = group.positions.to(tokens.device)
            rate = None
            if config.keep_or_replace:
                rate = chain.noise_rate[group.steps].float().to(tokens.device)
                rate = rate.expand(tokens.shape[0], -1)
            _resample(
                tokens,
                conditionals(tokens, positions, group.time),
                positions,
                seed=seed,
                step=group.time,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                min_p=config.min_p,
                noise_rate=rate,
                noise=noise,
                normalize=config.keep_or_replace,
                sample_ids=sample_ids,
                frozen=frozen,
            )
            if observe is not None:
                observe(group.time, tokens)
            bar.update(1)
    return SampleResult(tokens, len(groups), time.perf_counter() - started)


def _resample(
    tokens: torch.Tensor, logits: torch.Tensor | LinearLogits, positions: torch.Tensor, **options
) -> None:
    if isinstance(logits, LinearLogits):
        hidden, weight, bias = logits
        linear_glauber_step(tokens, hidden, weight, positions, bias=bias, **options)
    else:
        glauber_step(tokens, logits, positions, **options)
