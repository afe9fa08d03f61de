"""Steps of the reverse process that all samplers share: start, resampling of a group, noise coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from ggm.chain import Chain
from ggm.sampling.config import SamplingConfig, value_at
from ggm.sampling.redenoise import renoise
from ggm.sampling.visits import OwnVisits, VisitGroup
from ggm_kernels import NoiseLaw, glauber_step, linear_glauber_step


class LinearLogits(NamedTuple):
    """Logits hidden [B, K, d] @ weight [V, d].T + bias [V] that were not multiplied out."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class DataPrediction(NamedTuple):
    """Prediction p0 of the data token; the conditional of X_t is the mixture alpha p0 + (1 - alpha) pi.

    Attributes
    ----------
    logits : torch.Tensor or LinearLogits
        Logits of p0, float [B, K, V], or their factors.
    keep_prob : torch.Tensor
        alpha: probability that X_t holds the data token there, floating [B, K].
    logit_shift : torch.Tensor or None
        Of logits that have seen the token at their own position (a denoiser's): what takes out what that
        token tells (`ggm.mixture.leave_one_out_shift`), floating [B, K].
    """

    logits: torch.Tensor | LinearLogits
    keep_prob: torch.Tensor
    logit_shift: torch.Tensor | None = None


Prediction: TypeAlias = torch.Tensor | LinearLogits | DataPrediction


class Conditionals(Protocol):
    """The distribution of X_t at some positions, given X_t at all the others."""

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        time: int | torch.Tensor,
        *,
        visited: bool = True,
    ) -> Prediction:
        """Logits g at some positions of tokens [B, L] at time t, float [B, K, V], their factors, or p0.

        The tokens are X_t, but those at `positions` are as their visits left them, unless they were not
        `visited`, which is said for correctors alone. They must not influence the conditional
        (`DataPrediction.logit_shift` takes out what they tell). Positions are int64 [K] and the time is an
        int (in a CUDA graph a 0-d int64 tensor) if all sequences are at the same step. Where their frozen
        positions differ, each has positions and a time of its own: [B, K] and int64 [B]. Frozen ones among
        its positions fill up the row: nothing is drawn there, and their tokens are given to the others.
        """
        ...


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

    @cached_property
    def own(self) -> OwnVisits:
        """Visits that concern each sequence."""
        return OwnVisits.of(self.chain, self.frozen)

    def all_sweeps(self) -> int:
        """Sweeps of the whole run, those of the corrector among them."""
        corrected = sum(sweeps - 1 for sweeps in self.sweeps)
        return sum(self.sweeps) + corrected * self.config.corrector_sweeps

    def site_updates(self) -> int:
        """Updates of single sites in the whole run."""
        return int(self.own.counts.expand(len(self.sample_ids)).sum()) * self.all_sweeps()

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
        given: Prediction,
        group: VisitGroup,
        number: int,
        rows: torch.Tensor | None = None,
        *,
        again: int | None = None,
        progress: float | torch.Tensor | None = None,
    ) -> None:
        """Undo the visits of a group in place, in pass `number`.

        `rows` tell which sequences prediction and group are of; None is all of them. With `again`, the
        number of a corrector sweep, the heat bath draws the group anew instead. `progress` is that of the
        group unless given, a number or float64 [B].
        """
        progress = group.progress if progress is None else progress
        steps = group.steps.to(tokens.device)
        coordinate = self.coordinate(group, number, again)
        keep_or_replace = None if again is None else False
        update = partial(self.update, tokens, coordinate=coordinate, keep_or_replace=keep_or_replace)
        if not isinstance(progress, torch.Tensor):
            update(given, steps, progress=progress, rows=rows)
        elif not self.config.ramps:
            update(given, steps, rows=rows)
        else:  # a call has one temperature, which must not be that of another sequence
            for share in progress.unique().tolist():
                part = (progress == share).nonzero().squeeze(1).to(tokens.device)
                of = part if rows is None else rows[part]
                update(rows_of(given, part), steps[part], progress=share, rows=of)

    def coordinate(self, group: VisitGroup, number: int, again: int | None = None) -> int:
        """Noise coordinate of a group in pass `number`, or in corrector sweep `again` after its own there.

        No other draw at its positions has it: corrector sweeps are numbered after all passes.
        """
        if again is not None:
            number = len(self.sweeps) + number * self.config.corrector_sweeps + again
        return number * self.chain.steps + group.coordinate

    def update(
        self,
        tokens: torch.Tensor,
        given: Prediction,
        steps: torch.Tensor,
        coordinate: int | torch.Tensor,
        progress: float = 0.0,
        rows: torch.Tensor | None = None,
        *,
        keep_or_replace: bool | None = None,
    ) -> None:
        """Undo the visits of steps [K] or [B, K] in place.

        `progress` is the share of the way to time 0 that ramps are at; `rows` tell which sequences
        prediction and steps are of; `keep_or_replace` is that of the configuration unless given.
        """
        ids, frozen, changed = self.sample_ids, self.frozen, tokens
        if rows is not None:
            changed, ids = tokens[rows], ids[rows]
            frozen = None if frozen is None else frozen[rows]
        keeps = self.config.keep_or_replace if keep_or_replace is None else keep_or_replace
        positions, rate = self.chain.visits(steps)
        self.draw(
            changed,
            given,
            coordinate,
            progress,
            positions,
            noise_rate=rate.float().expand(len(changed), -1) if keeps else None,
            normalize=keeps,
            sample_ids=ids,
            frozen=frozen,
        )
        if rows is not None:
            tokens[rows] = changed

    def draw(
        self,
        tokens: torch.Tensor,
        given: Prediction,
        coordinate: int | torch.Tensor,
        progress: float | torch.Tensor,
        positions: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        """Draw the positions [K] or [B, K] of a prediction, or all, in place, where they are not frozen.

        `progress` is a number or float64 [B]; other options are those of `ggm_kernels.glauber_step`.
        """
        config = self.config
        options = {
            "seed": self.seed,
            "step": coordinate,
            "sample_ids": self.sample_ids,
            "temperature": value_at(config.temperature, progress),
            "top_k": config.top_k,
            "top_p": value_at(config.top_p, progress),
            "min_p": config.min_p,
            "noise": self.noise,
        } | options
        if isinstance(given, DataPrediction):
            shift = given.logit_shift
            options["mixture"] = given.keep_prob.float()
            options["logit_shift"] = None if shift is None else shift.float()
            given = given.logits
        if isinstance(given, LinearLogits):
            hidden, weight, bias = given
            linear_glauber_step(tokens, hidden, weight, positions, bias=bias, **options)
        else:
            glauber_step(tokens, given, positions, **options)


def times_of(time: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Chain time of each sequence, int64 [B]; a number is filled in: a copy would wait for the device."""
    if not isinstance(time, torch.Tensor):
        time = torch.full((), time, device=tokens.device)
    return time.to(tokens.device).expand(tokens.shape[0])


def rows_of(given: Prediction, rows: torch.Tensor, positions: torch.Tensor | None = None) -> Prediction:
    """The prediction for some sequences, [rows, K, ..]; with `positions` [rows], for one position of each."""

    def part(values: torch.Tensor) -> torch.Tensor:
        return values[rows] if positions is None else values[rows, positions][:, None]

    if isinstance(given, LinearLogits):
        return given._replace(hidden=part(given.hidden))
    if isinstance(given, DataPrediction):
        logits = rows_of(given.logits, rows, positions)
        assert not isinstance(logits, DataPrediction)
        shift = None if given.logit_shift is None else part(given.logit_shift)
        return DataPrediction(logits, part(given.keep_prob), shift)
    return part(given)
