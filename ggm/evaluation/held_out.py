"""Losses and calibration on held-out data, at several chain times."""

from __future__ import annotations

from typing import Any

import torch

from ggm.arguments import check_data
from ggm.chain import Chain
from ggm.evaluation.config import HeldOutConfig
from ggm.evaluation.statistics import standard_error
from ggm.model import GGM
from ggm.processes import ALONE, Processes
from ggm.sampling.visits import OwnVisits, VisitGroup


@torch.inference_mode()
def held_out(
    model: GGM, tokens: torch.Tensor, config: HeldOutConfig, processes: Processes = ALONE
) -> dict[str, Any]:
    """Losses and calibration on data that the model was not trained on.

    Parameters
    ----------
    model : GGM
        The model.
    tokens : torch.Tensor
        Data, int64 [M, L].
    config : HeldOutConfig
        Where in the chain.
    processes : Processes
        Who shares out the batches: all of them call this.

    Returns
    -------
    dict
        ``by_time``, from the least noise to the most, and the same numbers averaged over it: ``loss``,
        the model's own objective; ``cross_entropy``, in nats, of the token that X_t has there under
        its conditional, comparable between objectives and predictions; ``calibration`` and
        ``calibration_std``, mean and standard deviation over sequences of sum_a exp g, which is 1 for
        exact conditionals. Standard errors are those of a mean over independent sequences.

    Raises
    ------
    TypeError, ValueError
        If tokens are not integers of the model's length, or there are none.
    """
    check_data(tokens, model.chain.length, None)  # batches go to the device of the weights
    groups = list(OwnVisits.of(model.chain).groups(config.sites_per_step))[::-1]
    count = min(config.times, len(groups))
    # The middles of `count` equal parts.
    chosen = [groups[(2 * i + 1) * len(groups) // (2 * count)] for i in range(count)]
    ids = torch.arange(len(tokens))
    # [time, loss and cross-entropy and sum, sequence]: positions of one group are one look at a sequence.
    batches = ids.split(config.batch)
    parts = [(group, part) for group in chosen for part in batches]

    def look(part: tuple[VisitGroup, torch.Tensor]) -> torch.Tensor:
        group, rows = part
        return _values(model, tokens[rows], rows, group, config.seed).cpu()

    looked = torch.cat(processes.share_out(parts, look), dim=1)
    values = looked.view(3, count, len(tokens)).transpose(0, 1)
    by_time = [_at_time(group, model.chain, row) for group, row in zip(chosen, values, strict=True)]
    loss, cross_entropy, calibration = values.mean(dim=0)
    return {
        "sequences": len(tokens),
        "sites_per_step": config.sites_per_step,
        "seed": config.seed,
        "chain_steps": model.chain.steps,
        "loss": float(loss.mean()),
        "loss_standard_error": standard_error(loss),
        "cross_entropy": float(cross_entropy.mean()),
        "cross_entropy_standard_error": standard_error(cross_entropy),
        "calibration": float(calibration.mean()),
        "by_time": by_time,
    }


def _at_time(group: VisitGroup, chain: Chain, values: torch.Tensor) -> dict[str, Any]:
    loss, cross_entropy, calibration = values
    return {
        "time": int(group.time),
        "progress": int(group.time) / chain.steps,
        "loss": float(loss.mean()),
        "cross_entropy": float(cross_entropy.mean()),
        "calibration": float(calibration.mean()),
        "calibration_std": float(calibration.std(correction=0)),
    }


def _values(
    model: GGM, tokens: torch.Tensor, ids: torch.Tensor, group: VisitGroup, seed: int
) -> torch.Tensor:
    """Objective, cross-entropy and sum of exp g, means over the K predictions, float64 [3, B]."""
    device = model.backbone.head_bias.device
    times = torch.full((len(tokens),), int(group.time), device=device)
    steps = group.steps.to(device).expand(len(tokens), -1)
    # Times are the steps of the noise, where training has its own.
    coordinates: dict[str, Any] = {"seed": seed, "step": int(group.time), "sample_ids": ids.to(device)}
    now = times + len(group.steps)  # where a sampler sees the group
    predictions = model.predictions(tokens.to(device), times, steps, now=now, **coordinates)
    losses = [predictions.losses(model.config.objective), predictions.cross_entropy()]
    rows = torch.stack([*losses, predictions.calibration()]).double()
    return rows.view(3, len(tokens), -1).mean(dim=2)
