"""The reverse process: from pure noise at time T back to data at time 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from ggm.noising import Chain
from ggm.progress import progress_bar
from ggm.redenoise import ReDenoise, renoise
from ggm_kernels import NoiseLaw, Stream, glauber_step, linear_glauber_step, random_tokens


class LinearLogits(NamedTuple):
    """Logits hidden [B, K, d] @ weight [V, d].T + bias [V] that were not multiplied out."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class Conditionals(Protocol):
    """Logits g of the law of X_t at some positions, given X_t at all the others."""

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, time: int | torch.Tensor
    ) -> torch.Tensor | LinearLogits:
        """Logits at positions [K] of tokens [B, L] at time t: float [B, K, V], or their factors.

        The tokens that stand at `positions` must not influence the result. The time is an int; in a CUDA
        graph it is a 0-d int64 tensor.
        """
        ...


@dataclass(frozen=True)
class Ramp:
    """A setting that is linear in chain time: `start` at T, where sampling starts, and `end` at 0."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """Value after a share `progress` in [0, 1] of the way from T to 0."""
        return self.start + (self.end - self.start) * progress


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
    event_driven : bool
        Whether one evaluation of all L conditionals serves every step up to the next token that
        changes (`ggm.event_driven`); for networks that give all L at once, with one site per step.
    horizon : int or None
        Event-driven only: steps that an evaluation serves at most, 1 being exact; None is up to the
        end of the sweep, which bounds it in any case.
    temperature : float or Ramp
        Divides the logits of a draw.
    top_k, top_p, min_p : optional
        Filters of a draw, as in `ggm_kernels.glauber_step`; top_p may be a `Ramp`.
    redenoise : ReDenoise or None
        What follows when time 0 is reached.
    cuda_graph : bool
        Whether steps are recorded once per group size and replayed (`ggm.cuda_graphs`): the same
        samples with less time between kernels, on a CUDA device. A recording holds its numbers: no
        `Ramp`. Not with event_driven, whose steps depend on the tokens. Not run on a GPU yet.
    """

    sites_per_step: int = 1
    keep_or_replace: bool = False
    event_driven: bool = False
    horizon: int | None = None
    temperature: float | Ramp = 1.0
    top_k: int | None = None
    top_p: float | Ramp | None = None
    min_p: float | None = None
    redenoise: ReDenoise | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.sites_per_step < 1:
            raise ValueError(f"sites_per_step: got {self.sites_per_step}; allowed: 1 or more")
        if self.event_driven and self.sites_per_step != 1:
            raise ValueError(f"sites_per_step: got {self.sites_per_step}; allowed: 1 if event_driven")
        if self.horizon is not None and not (self.event_driven and self.horizon >= 1):
            raise ValueError(f"horizon: got {self.horizon}; allowed: None or, if event_driven, 1 or more")
        if self.cuda_graph and self.event_driven:
            raise ValueError("cuda_graph: got True with event_driven; allowed: one of them")
        for name in ("temperature", "top_p"):
            if self.cuda_graph and isinstance(getattr(self, name), Ramp):
                raise ValueError(
                    f"{name}: got a Ramp with cuda_graph, which holds one number; allowed: a number"
                )


@dataclass(frozen=True)
class SampleResult:
    """What a run of the reverse process gives.

    Attributes
    ----------
    tokens : torch.Tensor
        Samples, int64 [B, L].
    network_evaluations : int
        Evaluations of the conditionals, each on the whole batch.
    site_updates : int
        Visits that were undone, over all sequences: decisions on one token each, whether it changed
        or not. Frozen positions are not visited.
    seconds : float
        Wall-clock time.
    """

    tokens: torch.Tensor
    network_evaluations: int
    site_updates: int
    seconds: float

    @property
    def site_updates_per_second(self) -> float:
        """Speed, comparable between samplers of one chain."""
        return self.site_updates / self.seconds


class VisitGroup(NamedTuple):
    """Visits resampled together: steps [K], positions [K], and the chain time they lead back to."""

    time: int
    steps: torch.Tensor
    positions: torch.Tensor


def visit_groups(
    chain: Chain, sites_per_step: int, visited: torch.Tensor | None = None, sweeps: int | None = None
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
    sweeps : int, optional
        How many sweeps, of the first in time, there are to undo; None is all.

    Yields
    ------
    VisitGroup
        Within a group no position occurs twice, and none is visited by the steps from `time` up to
        the last of the group but by the group itself: all its conditionals are those of X_time.
    """
    if visited is not None and not visited.any():
        return
    order = chain.positions.view(chain.sweeps, chain.length)
    for sweep in reversed(range(chain.sweeps if sweeps is None else sweeps)):
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


@dataclass(frozen=True)
class Reversal:
    """What all steps of one run share, and the steps that all samplers have in common.

    A run is a first pass from time T to 0 and then those of `ReDenoise`, from the end of a sweep to 0.
    """

    chain: Chain
    config: SamplingConfig
    seed: int
    sample_ids: torch.Tensor
    frozen: torch.Tensor | None
    noise: NoiseLaw | None
    vocab_size: int | None

    def __post_init__(self) -> None:
        again = self.config.redenoise
        if again is not None and again.sweeps > self.chain.sweeps:
            raise ValueError(f"redenoise: got {again.sweeps} sweeps; allowed: 1 to {self.chain.sweeps}")
        if again is not None and self.vocab_size is None:
            raise ValueError("vocab_size: got None with redenoise; allowed: the number of tokens")

    @property
    def sweeps(self) -> list[int]:
        """Sweeps that each pass undoes."""
        again = self.config.redenoise
        return [self.chain.sweeps] + ([] if again is None else [again.sweeps] * again.repeats)

    @property
    def visited(self) -> torch.Tensor | None:
        """Positions [L] that are visited in some sequence, as `visit_groups` takes them."""
        return None if self.frozen is None else ~self.frozen.all(dim=0)

    def site_updates(self) -> int:
        """Visits to undo in the whole run."""
        per_sweep = len(self.sample_ids) * self.chain.length
        if self.frozen is not None:
            per_sweep -= int(self.frozen.sum())
        return per_sweep * sum(self.sweeps)

    def start(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        """State at the start of a pass, given what was before; a new tensor."""
        if number == 0:
            return tokens.clone()
        assert self.vocab_size is not None
        return renoise(
            tokens,
            self.chain,
            self.sweeps[number],
            self.vocab_size,
            seed=self.seed,
            step=number,
            sample_ids=self.sample_ids,
            frozen=self.frozen,
            noise=self.noise,
        )

    def resample(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor | LinearLogits,
        group: VisitGroup,
        number: int,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Undo the visits of a group in place, in pass `number`; `rows` tell which sequences these are."""
        coordinate = self.coordinate(group.time, number)
        progress = 1.0 - group.time / self.chain.steps
        self.update(tokens, logits, group.steps.to(tokens.device), coordinate, progress, rows)

    def coordinate(self, time: int, number: int) -> int:
        """Noise coordinate of the step that leads to a time in pass `number`; no other step has it."""
        return number * self.chain.steps + time

    def update(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor | LinearLogits,
        steps: torch.Tensor,
        coordinate: int | torch.Tensor,
        progress: float = 0.0,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Undo the visits of steps [K] in place; `progress` of the way to time 0 is where ramps are."""
        config, ids, frozen = self.config, self.sample_ids, self.frozen
        if rows is not None:
            ids, frozen = ids[rows], None if frozen is None else frozen[rows]
        positions, rate = self.chain.visits(steps)
        options: dict[str, Any] = {
            "seed": self.seed,
            "step": coordinate,
            "temperature": _at(config.temperature, progress),
            "top_k": config.top_k,
            "top_p": _at(config.top_p, progress),
            "min_p": config.min_p,
            "noise_rate": rate.float().expand(len(tokens), -1) if config.keep_or_replace else None,
            "noise": self.noise,
            "normalize": config.keep_or_replace,
            "sample_ids": ids,
            "frozen": frozen,
        }
        if isinstance(logits, LinearLogits):
            hidden, weight, bias = logits
            linear_glauber_step(tokens, hidden, weight, positions, bias=bias, **options)
        else:
            glauber_step(tokens, logits, positions, **options)


def _at(setting: float | Ramp | None, progress: float) -> float | None:
    return setting.at(progress) if isinstance(setting, Ramp) else setting


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
    vocab_size: int | None = None,
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
        pi in the keep decision and of new noise; None is uniform.
    vocab_size : int, optional
        V, which `ReDenoise` needs to draw noise.
    progress : bool
        Whether to show a progress bar (needs tqdm).
    observe : callable, optional
        Called with (T, tokens) at the start, then with (t, X_t) after every group of steps and where
        samples were noised again. The tensor is the state itself: copy what must last.

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
    if sample_ids is None:
        sample_ids = torch.arange(len(tokens), device=tokens.device)
    run = Reversal(chain, config, seed, sample_ids, frozen, noise, vocab_size)
    graphs = _graphs(conditionals, run, tokens) if config.cuda_graph else None
    passes = [list(visit_groups(chain, config.sites_per_step, run.visited, sweeps)) for sweeps in run.sweeps]
    evaluations = sum(len(groups) for groups in passes)
    started = time.perf_counter()
    with progress_bar(progress, evaluations, "sampling", unit="step") as bar:
        for number, groups in enumerate(passes):
            tokens = run.start(tokens, number)
            if graphs is not None:
                tokens = graphs.load(tokens)
            if observe is not None:
                observe(run.sweeps[number] * chain.length, tokens)
            for group in groups:
                if graphs is not None:
                    graphs.resample(group, number)
                else:
                    logits = conditionals(tokens, group.positions.to(tokens.device), group.time)
                    run.resample(tokens, logits, group, number)
                if observe is not None:
                    observe(group.time, tokens)
                bar.update(1)
    if tokens.is_cuda:  # what was asked for is not yet done
        torch.cuda.synchronize(tokens.device)
    seconds = time.perf_counter() - started
    return SampleResult(tokens, evaluations, run.site_updates(), seconds)


def _graphs(conditionals: Conditionals, run: Reversal, tokens: torch.Tensor) -> Any:
    from ggm.cuda_graphs import GraphedSteps  # which needs this module

    return GraphedSteps(conditionals, run, tokens)
