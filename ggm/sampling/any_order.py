"""Any-order sampler: every position drawn once, from noise to data, by confidence or at random."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ggm.chain import Chain
from ggm.draws import uniforms
from ggm.progress import progress_bar
from ggm.sampling.config import SamplingConfig
from ggm.sampling.steps import DataPrediction, Reversal
from ggm.sampling.stepwise import SampleResult
from ggm_kernels import NoiseLaw, Stream, commit

# Confidences are compared in steps of 1 / so many nats: near probability 1 they differ by rounding alone,
# which depends on the batch, and would decide the order.
_STEPS_PER_NAT = 2**14


class DataConditionals(Protocol):
    """The distribution of the data token everywhere, given data at some positions and noise at the others."""

    def __call__(self, tokens: torch.Tensor, times: torch.Tensor, given: torch.Tensor) -> DataPrediction:
        """Prediction of X_0 at all positions of tokens [B, L]: p0, with a keep probability of 1.

        Tokens are data where they are `given`, bool [B, L], and those of X_t elsewhere, t being `times`,
        int64 [B]. For the heat bath, row b, position i must not depend on the token there; for
        keep-or-replace it must, as the posterior of X_{0,i} does (`DataPrediction.logit_shift` makes one of
        the other). Rows of given positions are not read.
        """
        ...


@torch.inference_mode()
def denoise_in_any_order(
    conditionals: DataConditionals,
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
    """Draw every position once, in an order of each sequence's own.

    Each evaluation predicts the data token at all positions that are still open. Some of these are drawn and
    are from then on given to the network, as frozen ones are; the others keep their noise. A run is one pass
    over all positions, and one more for each round of `ReDenoise`.

    Parameters
    ----------
    conditionals : DataConditionals
        The data token at all positions: given the others for the heat bath, given its own position, too, for
        keep-or-replace. From pure noise both are the same.
    chain, tokens, seed, sample_ids, frozen, noise, vocab_size, progress
        As in `ggm.sampling.stepwise.denoise`; of the chain only its keep probabilities matter.
    config : SamplingConfig
        Its `order` is "confidence" or "random"; its `sites_per_step` is the most positions of a sequence that
        an evaluation settles. A sequence takes as few evaluations as that allows, or the config's
        `evaluations_per_pass`, and spreads its positions evenly over them. With a `confidence_threshold` it
        settles more where it can, and is done earlier.
    observe : callable, optional
        Called with (t, X_t) at the start of a pass, then after every evaluation with the number of positions
        that are open in the sequence that has the most, and the tokens.

    Returns
    -------
    SampleResult
        Samples of X_0.

    Notes
    -----
    With exact predictions, one site per step and the order "random" a sample has the distribution of the
    data: a draw turns X_t into X_0 at one position and leaves the joint distribution right, and the order
    looks at no token. The order "confidence" draws at all open positions and keeps the tokens that are the
    most probable under the network, without temperature and filters. What is drawn then decides what is kept,
    so that likely tokens are favoured, even with exact predictions and one site per step. Logarithms of
    probabilities are compared, and held against the threshold, to the nearest 2**-14; of equal ones the first
    position is settled. Source of that order: MaskGIT (arXiv 2202.04200), where a mask stands for our noise;
    here the network is told by keep probabilities what is noise. The threshold is that of Fast-dLLM (arXiv
    2505.22618).
    """
    if sample_ids is None:
        sample_ids = torch.arange(len(tokens), device=tokens.device)
    run = Reversal(chain, config, seed, sample_ids, frozen, noise, vocab_size)
    given = torch.zeros_like(tokens, dtype=torch.bool) if frozen is None else frozen
    counts = (~given).sum(dim=1)
    steps = _steps_of(counts, config)
    most = int(steps.max()) if len(steps) else 0
    evaluations = 0
    started = time.perf_counter()
    with progress_bar(progress, most * len(run.sweeps), "sampling", unit="step") as bar:
        for number, sweeps in enumerate(run.sweeps):
            tokens, settled = run.start(tokens, number), given.clone()
            times = torch.full_like(sample_ids, sweeps * chain.length)
            order = _random_order(run, number) if config.order == "random" else None
            if observe is not None:
                observe(sweeps * chain.length, tokens)
            for step in range(most):
                if config.confidence_threshold is not None and settled.all():
                    break
                prediction = conditionals(tokens, times, settled)
                evaluations += 1
                share = _progress(step, steps, sweeps / chain.sweeps) if config.ramps else 0.0
                count = -(-(~settled).sum(dim=1) // (steps - step).clamp_min(1))
                _settle(run, tokens, prediction, settled, count, order, number * chain.steps + step, share)
                bar.update(1)
                if observe is not None:
                    observe(int((~settled).sum(dim=1).max()), tokens)
    if tokens.is_cuda:  # what was asked for is not yet done
        torch.cuda.synchronize(tokens.device)
    seconds = time.perf_counter() - started
    return SampleResult(tokens, evaluations, int(counts.sum()) * len(run.sweeps), seconds)


def _steps_of(counts: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Evaluations of each sequence in a pass, by how many positions are open [B]."""
    if config.evaluations_per_pass is not None:
        return counts.clamp_max(config.evaluations_per_pass)
    return (counts + config.sites_per_step - 1) // config.sites_per_step


def _progress(step: int, steps: torch.Tensor, reach: float) -> torch.Tensor:
    """Share of the way to time 0 of each sequence, float64 [B], in a pass over the last share `reach`."""
    last = (steps - 1).clamp_min(1)
    within = torch.where(steps > 1, (step / last).clamp_max(1.0), 1.0).double()
    return 1.0 - reach * (1.0 - within)


def _random_order(run: Reversal, number: int) -> torch.Tensor:
    """Numbers whose order is that of the positions in a pass, float32 [B, L]."""
    drawn = uniforms(run.sample_ids, run.chain.length, stream=Stream.VISIT_ORDER, seed=run.seed, step=number)
    return drawn.float()


def _settle(
    run: Reversal,
    tokens: torch.Tensor,
    prediction: DataPrediction,
    settled: torch.Tensor,
    count: torch.Tensor,
    order: torch.Tensor | None,
    coordinate: int,
    progress: float | torch.Tensor,
) -> None:
    """Draw `count` [B] or more of the positions not settled, in place: next in an order, or the surest."""
    chosen = torch.empty_like(settled)
    options: dict[str, Any] = {"count": count, "eligible": ~settled, "accepted": chosen}
    options |= {"seed": run.seed, "step": coordinate}
    if order is not None:
        commit(tokens, tokens.clone(), order, **options)
        run.draw(tokens, prediction, coordinate, progress, frozen=~chosen)
    else:
        drawn, log_prob = tokens.clone(), torch.empty(tokens.shape, device=tokens.device)
        run.draw(drawn, prediction, coordinate, progress, frozen=settled, raw_log_prob=log_prob)
        score = (log_prob * _STEPS_PER_NAT).round()
        if run.config.confidence_threshold is not None:
            least = round(math.log(run.config.confidence_threshold) * _STEPS_PER_NAT)
            sure = (score >= least) & ~settled
            options["count"] = torch.maximum(count, sure.sum(dim=1))
        commit(tokens, drawn, score, **options)
    settled |= chosen
