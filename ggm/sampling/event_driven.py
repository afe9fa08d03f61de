"""Event-driven sampler: one network evaluation per changed token, by networks that give all conditionals."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from ggm.chain import Chain
from ggm.progress import progress_bar
from ggm.sampling.config import SamplingConfig
from ggm.sampling.steps import Prediction, Reversal, rows_of
from ggm.sampling.stepwise import SampleResult
from ggm.sampling.visits import VisitGroup
from ggm_kernels import NoiseLaw


class AllConditionals(Protocol):
    """The distribution of every position given all the others."""

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor, now: torch.Tensor) -> Prediction:
        """Logits at all positions of tokens [B, L], sequence b at time times[b]: [B, L, V], factors, or p0.

        Row b, position i must not depend on the token there (`DataPrediction.logit_shift` takes out what it
        tells). `now` is the time that the tokens are at, after `times` and in the same sweep. Both are int64
        [B], on the device of the tokens.
        """
        ...


@torch.inference_mode()
def denoise_by_events(
    conditionals: AllConditionals,
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
) -> SampleResult:
    """Run the chain backwards, with one evaluation of all conditionals per changed token.

    As long as no token changes, the contexts of all positions stay the same. So the logits of one
    evaluation serve the steps t - 1, t - 2, .. until a step puts another token in place of the old
    one, an *event*; each sequence goes on to its own next event between two evaluations of the batch.
    Every decision and draw has the coordinates (seed, step, sequence, position) that it has in
    `ggm.sampling.stepwise.denoise`.

    Parameters
    ----------
    conditionals : AllConditionals
        All logits; called with the time of the last step that the evaluation may serve. A sequence that is
        done is asked for, too, with a time that means nothing.
    chain, tokens, config, seed, sample_ids, frozen, noise, vocab_size, progress
        As in `ggm.sampling.stepwise.denoise`. `config.horizon` bounds the visits that an evaluation
        serves; the end of a sweep does so in any case.

    Returns
    -------
    SampleResult
        Samples of X_0. An evaluation counts once, however many sequences still need it.

    Notes
    -----
    The result equals that of `denoise` if the logits do not depend on time, or with
    ``horizon=1``. Otherwise steps but the last use logits of a time still ahead by less than the
    horizon: an approximation (docs/mathematics.md says how good). Source: our own derivation.
    """
    if sample_ids is None:
        sample_ids = torch.arange(len(tokens), device=tokens.device)
    run = Reversal(chain, config, seed, sample_ids, frozen, noise, vocab_size)
    evaluations = 0
    per_sweep = run.own.counts.expand(len(tokens))
    started = time.perf_counter()
    with progress_bar(progress, run.site_updates(), "sampling", unit="site") as bar:
        for number, sweeps in enumerate(run.sweeps):
            tokens = run.start(tokens, number)
            # Visits that each sequence has to undo, on the CPU, which must know them to choose steps.
            left = sweeps * per_sweep
            while left.any():
                before = int(left.sum())
                limits = _limits(run, left)
                now = run.own.times((left - 1).clamp_min(0)) + 1
                given = conditionals(tokens, *(at.to(tokens.device) for at in (run.own.times(limits), now)))
                evaluations += 1
                _advance(run, tokens, given, left, limits, number)
                bar.update(before - int(left.sum()))
    return SampleResult(tokens, evaluations, run.site_updates(), time.perf_counter() - started)


def _limits(run: Reversal, left: torch.Tensor) -> torch.Tensor:
    """Visits left after the last one that an evaluation may serve: of the sweep, or of the horizon."""
    last = (left - 1).clamp_min(0)
    sweep_start = last - run.own.split(last)[1]
    horizon = run.config.horizon
    return sweep_start if horizon is None else torch.maximum(left - horizon, sweep_start)


def _advance(
    run: Reversal,
    tokens: torch.Tensor,
    given: Prediction,
    left: torch.Tensor,
    limits: torch.Tensor,
    number: int,
) -> None:
    """Bring each sequence to its next event, or to its limit; in place."""
    going = left > 0
    while going.any():
        sweeps, visits = run.own.split(left - 1)
        # One call has one noise coordinate: those go on that are the furthest from time 0.
        coordinates = torch.where(going, sweeps * run.chain.length + visits, -1)
        sweep, visit = divmod(int(coordinates.max()), run.chain.length)
        rows = (coordinates == coordinates.max()).nonzero().squeeze(1)
        changed = _undo(run, tokens, given, run.own.visit(sweep, visit, rows), number, rows)
        left[rows] -= 1
        going[rows] = ~changed.cpu() & (limits[rows] < left[rows])


def _undo(
    run: Reversal,
    tokens: torch.Tensor,
    given: Prediction,
    group: VisitGroup,
    number: int,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Undo one visit of each of some sequences, in place; whether their tokens changed, bool [rows]."""
    rows, positions = rows.to(tokens.device), group.positions[:, 0].to(tokens.device)
    before = tokens[rows, positions]
    run.resample(tokens, rows_of(given, rows, positions), group, number, rows)
    return tokens[rows, positions] != before
