"""A step on the CPU of which all but addresses, seed and step was worked out before: for small calls."""

from __future__ import annotations

from typing import Any

import torch

from ggm_kernels import checks
from ggm_kernels.native.compiled import CPU, address
from ggm_kernels.native.glauber_step import Step, tile_of
from ggm_kernels.ops.glauber_update import BY_PRODUCTS, Update

_WRITTEN = ("tokens", *BY_PRODUCTS)
_READ = ("logits", "positions", "sample_ids", "frozen", "noise_rate", "noise_log_probs")
_FIELDS = (*_WRITTEN, *_READ)  # in the order of csrc/step_plan.h
_BY_ROW = ("seed", "step", "temperature", "top_k", "top_p", "min_p", "logit_shift", "mixture")


class StepPlan:
    """The core's arguments for calls that look alike; tensors made of numbers are kept and used again.

    Parameters
    ----------
    given : dict of str to object
        The arguments that `_FIELDS` names, as they were given.
    update : Update
        What the checks made of them and of the others.
    """

    def __init__(self, given: dict[str, Any], update: Update) -> None:
        used = {name: given[name] for name in ("tokens", "logits")}
        used |= {name: getattr(update, name) for name in _FIELDS if name not in used}
        self._step = Step(CPU, used["tokens"], update, used["logits"].shape[2])
        spans = [0 if used[name] is None else checks.extent(used[name]) for name in _FIELDS]
        self._plan = CPU.core.StepPlan(self._step.args, tile_of(self._step, used["logits"]), spans)
        self._moving = [
            (place, name) for place, name in enumerate(_FIELDS) if isinstance(given.get(name), torch.Tensor)
        ]
        self._counted = [
            name for name in _WRITTEN if given[name] is not None and not given[name].is_inference()
        ]
        self._addresses = [address(used[name]) for name in _FIELDS]
        moving = {name for _, name in self._moving}
        self._kept = [value for name, value in used.items() if name not in moving]

    def run(self, given: dict[str, Any], seed: int, step: int) -> int:
        """Rows without a law; less than 0, and nothing written, where a value or an address is amiss."""
        addresses = self._addresses.copy()
        for place, name in self._moving:
            addresses[place] = given[name].data_ptr()
        lawless = CPU.core.cpu_planned_step(self._plan, addresses, seed, step, torch.get_num_threads())
        if lawless >= 0:
            torch.autograd.graph.increment_version([given[name] for name in self._counted])
        return lawless


def plan(given: dict[str, Any], update: Update) -> StepPlan | None:
    """A plan for calls like this one, unless a tensor of it has to be read or converted first."""
    if any(isinstance(getattr(update, name), torch.Tensor) for name in _BY_ROW):
        return None
    if not (update.positions.dtype == torch.int64 and update.positions.is_contiguous()):
        return None
    if update.noise_rate is not None and update.noise_rate.dtype != torch.float32:
        return None
    if given["logits"].stride(-1) != 1:
        return None
    for name in ("positions", "sample_ids", "frozen", "noise_rate"):
        value = given[name]
        if isinstance(value, torch.Tensor) and value.data_ptr() != getattr(update, name).data_ptr():
            return None
    return StepPlan(given, update)
