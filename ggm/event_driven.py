"""The reverse process from one changed token to the next, for networks that give all L conditionals."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from ggm.noising import Chain
from ggm.progress import progress_bar
from ggm.reversal import LinearLogits, Reversal, VisitGroup
from ggm.sampling import SampleResult
from ggm.sampling_config import SamplingConfig
from ggm_kernels import NoiseLaw


class AllConditionals(Protocol):
    """Logits g of the law of every position given all the others."""

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor) -> torch.Tensor | LinearLogits:
        """Logits at all positions of tokens [B, L], sequence b at time times[b]: [B, L, V], or factors.

        Row b, position i must not depend on the token there. `times` is int64 [B], on the device of
        the tokens.
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
    `ggm.sampling.denoise`.

    Parameters
    ----------
    conditionals : AllConditionals
        All logits; called with the time of the last step that the evaluation may serve.
    chain, tokens, config, seed, sample_ids, frozen, noise, vocab_size, progress
        As in `ggm.sampling.denoise`. `config.horizon` bounds the steps that an evaluation serves; the
        end of a sweep does so in any case.

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
    started = time.perf_counter()
    with progress_bar(progress, len(tokens) * chain.length * sum(run.sweeps), "sampling", unit="site") as bar:
        for number, sweeps in enumerate(run.sweeps):
            tokens = run.start(tokens, number)
            # Where each sequence is in time. Kept on the CPU, which must know it to choose the steps.
            times = torch.full((len(tokens),), sweeps * chain.length)
            left = int(times.sum())
            while True:
                _skip_frozen(run, times)
                if not times.any():
                    break
                limits = _limits(run, times)
                logits = conditionals(tokens, limits.to(tokens.device))
                evaluations += 1
                _advance(run, tokens, logits, times, limits, number)
                bar.update(left - int(times.sum()))
                left = int(times.sum())
            bar.update(left)
    return SampleResult(tokens, evaluations, run.site_updates(), time.perf_counter() - started)


def _skip_frozen(run: Reversal, times: torch.Tensor) -> None:
    """Move each sequence's time past the steps that visit its frozen positions."""
    if run.frozen is None:
        return
    frozen = run.frozen.cpu()
    rows = torch.arange(len(times))
    while True:
        visited = run.chain.positions[(times - 1).clamp_min(0)]
        skipped = (times > 0) & frozen[rows, visited]
        if not skipped.any():
            return
        times -= skipped.long()


def _limits(run: Reversal, times: torch.Tensor) -> torch.Tensor:
    """Last step that an evaluation for each sequence may serve: of the sweep, or of the horizon."""
    sweep_start = (times - 1).clamp_min(0) // run.chain.length * run.chain.length
    horizon = run.chain.length if run.config.horizon is None else run.config.horizon
    return torch.maximum(times - horizon, sweep_start)


def _advance(
    run: Reversal,
    tokens: torch.Tensor,
    logits: torch.Tensor | LinearLogits,
    times: torch.Tensor,
    limits: torch.Tensor,
    number: int,
) -> None:
    """Bring each sequence to its next event, or to its limit; in place."""
    going = times > 0
    while going.any():
        step = int(times[going].max()) - 1
        rows = (going & (times == step + 1)).nonzero().squeeze(1)
        changed = _undo(run, tokens, logits, step, number, rows.to(tokens.device))
        times[rows] = step
        going[rows] = ~changed.cpu() & (limits[rows] < step)


def _undo(
    run: Reversal,
    tokens: torch.Tensor,
    logits: torch.Tensor | LinearLogits,
    step: int,
    number: int,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Undo one step in some sequences, in place; whether the token changed, bool [rows]."""
    steps = torch.tensor([step])
    position = int(run.chain.positions[step])
    part = tokens[rows]
    run.resample(
        part,
        _at_position(logits, rows, position),
        VisitGroup(step, steps, run.chain.positions[steps]),
        number,
        rows,
    )
    changed = part[:, position] != tokens[rows, position]
    tokens[rows] = part
    return changed


def _at_position(
    logits: torch.Tensor | LinearLogits, rows: torch.Tensor, position: int
) -> torch.Tensor | LinearLogits:
    if isinstance(logits, LinearLogits):
        return logits._replace(hidden=logits.hidden[rows, position][:, None])
    return logits[rows, position][:, None]
