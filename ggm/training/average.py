"""Average of the weights over the steps of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

# Steps after which an average that goes on counts as long under way.
_LONG = 2**31 - 1


def decay_at(step: int, decay: float) -> float:
    """Decay of the average at a step: at first it forgets the random weights that training began with.

    Parameters
    ----------
    step : int
        Steps n that the average is of.
    decay : float
        What it is in the long run, d.

    Returns
    -------
    float
        min(d, (1 + n) / (10 + n)).
    """
    return min(decay, (1 + step) / (10 + step))


def start_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Average of a model's weights, to be updated after every step; its first update takes them as they are.

    Parameters
    ----------
    model : torch.nn.Module
        The weights.
    decay : float
        As in `decay_at`.

    Returns
    -------
    AveragedModel
        Its `n_averaged`, which is on the CPU, counts the steps: whoever goes on with an average sets it.
    """
    averaged = AveragedModel(model)

    @torch.no_grad()
    def update(means: Any, weights: Any, _: Any) -> None:
        # Not the number that is given: on a GPU, to read it would make the CPU wait.
        torch._foreach_lerp_(means, weights, 1.0 - decay_at(int(averaged.n_averaged), decay))

    averaged.multi_avg_fn = update
    return averaged


def go_on(averaged: AveragedModel) -> None:
    """Count an average that was begun elsewhere as long under way: 0 steps would make it start anew."""
    averaged.n_averaged.fill_(_LONG)
