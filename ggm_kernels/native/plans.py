"""Calls of csrc/cpu of which all but addresses, seed and step was worked out before: for small calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ggm_kernels import checks
from ggm_kernels.arguments.commit import Choice
from ggm_kernels.arguments.glauber_step import BY_PRODUCTS, Update
from ggm_kernels.native.commit import arguments_of as commit_arguments
from ggm_kernels.native.compiled import CPU, address, core
from ggm_kernels.native.corrupt import arguments_of as corrupt_arguments
from ggm_kernels.native.glauber_step import tile_of
from ggm_kernels.native.step_arguments import Step

_BY_ROW = ("temperature", "top_k", "top_p", "min_p", "logit_shift", "mixture")  # that may be tensors


class Plan:
    """The core's arguments for calls that look alike; tensors made of numbers are kept and used again.

    Parameters
    ----------
    run : callable
        Runs a plan of the core on addresses, seed, step and threads; less than 0: something is amiss.
    kind : type
        The plan of the core, made from `arguments` and the bytes that each tensor spans.
    arguments : tuple
        Structs of the core.
    given : dict of str to object
        The arguments that may be tensors, as they were given.
    used : dict of str to torch.Tensor or None
        What the checks made of them: the tensors that csrc/plans.h names.
    counted : sequence of str
        Those whose writes autograd is told of.
    """

    def __init__(
        self,
        run: Callable,
        kind: Any,
        arguments: tuple,
        given: dict[str, Any],
        used: dict[str, torch.Tensor | None],
        counted: tuple[str, ...],
    ) -> None:
        used = {name: used[name] for name in kind.names}
        self._run = run
        # Names of the tensors whose addresses come with a call; the others are held.
        self._moving = [name for name in used if isinstance(given.get(name), torch.Tensor)]
        self._held = {name: value for name, value in used.items() if name not in self._moving}
        self._plan = kind(
            *arguments,
            [0 if value is None else checks.extent(value) for value in used.values()],
            [address(self._held.get(name)) for name in kind.names],
            [kind.names.index(name) for name in self._moving],
        )
        self._counted = [
            name for name in counted if given[name] is not None and not given[name].is_inference()
        ]

    def run(self, given: dict[str, Any], seed: int, step: int) -> int:
        """What the core says; less than 0, and no argument written, where a value or an address is amiss."""
        addresses = [given[name].data_ptr() for name in self._moving]
        result = self._run(self._plan, addresses, seed, step, torch.get_num_threads())
        if result >= 0 and self._counted:
            torch.autograd.graph.increment_version([given[name] for name in self._counted])
        return result


def glauber_step(given: dict[str, Any], update: Update) -> Plan | None:
    """A plan for steps like this one, unless a tensor has to be read or converted first."""
    names = ("positions", "sample_ids", "frozen", "noise_rate", "noise_log_probs", "noise_table")
    tokens, logits = given["tokens"], given["logits"]
    used = {"tokens": tokens, **{name: getattr(update, name) for name in BY_PRODUCTS}, "logits": logits}
    used |= {name: getattr(update, name) for name in names}
    used |= {name: _tensor(getattr(update, name)) for name in _BY_ROW}
    if not (update.positions.dtype == torch.int64 and update.positions.is_contiguous()):
        return None
    if update.noise_rate is not None and update.noise_rate.dtype != torch.float32:
        return None
    if logits.stride(-1) != 1 or _converts(given, used):
        return None
    step = Step(CPU, tokens, update, logits.shape[2])
    tile = tile_of(step, logits)
    counted = ("tokens", *BY_PRODUCTS)
    return Plan(core.planned_step, core.StepPlan, (step.args, tile), given, used, counted)


def commit(given: dict[str, Any], choice: Choice) -> Plan | None:
    """The same of `commit`."""
    limits = {name: getattr(choice, name) for name in ("count", "threshold", "budget")}
    tensors = {name: _tensor(value) for name, value in limits.items()}
    used = {name: given[name] for name in ("tokens", "accepted", "proposal", "score", "eligible")}
    used |= {**tensors, "sample_ids": choice.sample_ids}
    if _converts(given, used):
        return None
    args = commit_arguments(CPU, given["tokens"], given["proposal"], given["score"], choice)
    return Plan(core.planned_commit, core.CommitPlan, (args,), given, used, ("tokens", "accepted"))


def corrupt(given: dict[str, Any], keep_prob: torch.Tensor, *rest) -> Plan | None:
    """The same of `corrupt`: `rest` is what its kernel is given behind `keep_prob`."""
    _, _, _, sample_ids, frozen, *_ = rest
    used = {name: given[name] for name in ("noisy", "is_signal", "tokens")}
    used |= {"keep_prob": keep_prob, "sample_ids": sample_ids, "frozen": frozen}
    contiguous = given["tokens"].is_contiguous() and keep_prob.is_contiguous()
    if keep_prob.dtype != torch.float32 or not contiguous or _converts(given, used):
        return None
    args = corrupt_arguments(CPU, given["noisy"], given["is_signal"], given["tokens"], keep_prob, *rest)
    return Plan(core.planned_corrupt, core.CorruptPlan, (args,), given, used, ())


def _tensor(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) else None


def _converts(given: dict[str, Any], used: dict[str, torch.Tensor | None]) -> bool:
    """Whether the core reads a copy of what is given."""
    return any(
        isinstance(value, torch.Tensor) and name in used and value.data_ptr() != address(used[name])
        for name, value in given.items()
    )
