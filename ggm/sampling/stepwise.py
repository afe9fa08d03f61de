"""Stepwise sampler: the reverse process, one network evaluation per group of visits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ggm.chain import Chain
from ggm.data.vocabulary import Vocabulary
from ggm.progress import progress_bar
from ggm.sampling.config import Ramp, SamplingConfig
from ggm.sampling.cuda_graphs import GraphedSteps
from ggm.sampling.display import shown
from ggm.sampling.steps import Conditionals, DataPrediction, LinearLogits, Reversal
from ggm.sampling.visits import VisitGroup
from ggm_kernels import NoiseLaw, Stream, random_tokens

__all__ = [
    "Conditionals",
    "DataPrediction",
    "LinearLogits",
    "Ramp",
    "SampleResult",
    "SamplingConfig",
    "denoise",
    "initial_tokens",
]


@dataclass(frozen=True, repr=False)
class SampleResult:
    """What a run of the reverse process gives; a notebook shows its texts or pictures.

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
    vocabulary : Vocabulary or None
        What the tokens mean: that of the model.
    """

    tokens: torch.Tensor
    network_evaluations: int
    site_updates: int
    seconds: float
    vocabulary: Vocabulary | None = None

    @property
    def text(self) -> list[str] | None:
        """Texts, B of them; None if the tokens are not those of text."""
        return None if self.vocabulary is None else self.vocabulary.texts(self.tokens)

    @property
    def images(self) -> torch.Tensor | None:
        """Pictures, uint8 [B, H, W, C] on the CPU; None if the tokens are not those of images."""
        return None if self.vocabulary is None else self.vocabulary.pictures(self.tokens)

    def __repr__(self) -> str:
        count, length = self.tokens.shape
        return (
            f"SampleResult({count} sequences of {length} tokens, {self.network_evaluations} network "
            f"evaluations, {self.site_updates} site updates, {self.seconds:.3g} s)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(repr(self), self.text, self.images)

    @property
    def site_updates_per_second(self) -> float:
        """Speed, comparable between samplers of one chain."""
        return self.site_updates / self.seconds if self.site_updates else 0.0


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
    vocab_size: int | None = None,
    progress: bool = False,
    observe: Callable[[int, torch.Tensor], None] | None = None,
) -> SampleResult:
    """Run the chain backwards, t = T - 1 .. 0.

    Parameters
    ----------
    conditionals : Conditionals
        P(X_{t,i} = . | X_{t,-i}) as logits or as a prediction of the data: a network, or any callable.
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
        bool [B, L]: positions that keep their tokens (infilling). Each sequence is led through groups of
        its own positions, the same as alone; those that have fewer groups in a sweep wait for the others.
    noise : NoiseLaw, optional
        pi in the keep decision and of new noise; None is uniform.
    vocab_size : int, optional
        V, which `ReDenoise` needs to draw noise.
    progress : bool
        Whether to show a progress bar (needs tqdm).
    observe : callable, optional
        Called with (T, tokens) at the start, then with (t, X_t) after every group of steps and where
        samples were noised again. The tensor is the state itself: copy what must last. Where frozen
        positions differ between sequences, t is the latest of their times.

    Returns
    -------
    SampleResult
        Samples of X_0, with what they cost.

    Notes
    -----
    If the conditionals are exact, the state at time T has the distribution of X_T and one site
    is resampled per step, then the state at every t has the distribution of X_t. Source: the time-dependent
    Glauber dynamics of arXiv 2405.17035; groups and keep-or-replace are our derivation
    (docs/mathematics.md).
    """
    if sample_ids is None:
        sample_ids = torch.arange(len(tokens), device=tokens.device)
    run = Reversal(chain, config, seed, sample_ids, frozen, noise, vocab_size)
    graphs = GraphedSteps(conditionals, run, tokens) if config.cuda_graph else None
    evaluations = run.own.groups_per_sweep(config.sites_per_step) * run.all_sweeps()
    started = time.perf_counter()
    with progress_bar(progress, evaluations, "sampling", unit="step") as bar:
        for number, sweeps in enumerate(run.sweeps):
            tokens = run.start(tokens, number)
            if graphs is not None:
                tokens = graphs.load(tokens)
            if observe is not None:
                observe(sweeps * chain.length, tokens)
            of_sweep: list[VisitGroup] = []
            for group in run.own.groups(config.sites_per_step, sweeps, tokens.device):
                of_sweep.append(group)
                if graphs is not None:
                    graphs.resample(group, number)
                else:
                    given = conditionals(tokens, group.positions, group.time)
                    run.resample(tokens, given, group, number)
                bar.update(1)
                sweep, first = divmod(group.coordinate, chain.length)
                if first == 0:  # all sequences are at the start of the sweep
                    if sweep > 0:
                        bar.update(
                            _correct(conditionals, run, tokens, of_sweep, sweep * chain.length, number)
                        )
                    of_sweep = []
                if observe is not None:
                    observe(int(torch.as_tensor(group.time).max()), tokens)
    if tokens.is_cuda:  # what was asked for is not yet done
        torch.cuda.synchronize(tokens.device)
    seconds = time.perf_counter() - started
    return SampleResult(tokens, evaluations, run.site_updates(), seconds)


def _correct(
    conditionals: Conditionals,
    run: Reversal,
    tokens: torch.Tensor,
    groups: list[VisitGroup],
    time: int,
    number: int,
) -> int:
    """Sweeps of the heat bath at one time, over the groups of the sweep that led there; in place.

    Returns how many groups were drawn.
    """
    reached = groups[-1].progress  # ramps have the value of the draw before
    for again in range(run.config.corrector_sweeps):
        for group in groups:
            given = conditionals(tokens, group.positions, time, visited=False)
            run.resample(tokens, given, group, number, again=again, progress=reached)
    return run.config.corrector_sweeps * len(groups)
