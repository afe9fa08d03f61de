"""`EntropyBoundScheduler`: accept the surest tokens of a canvas, noise the others."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers import scheduling_entropy_bound

from ggm_kernels.integrations.draws import Logits, drawn, logits_of, seed_from
from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.ops.commit import commit


class _Quotient(NamedTuple):
    """Logits to be divided by a temperature when somebody asks for them."""

    logits: torch.Tensor
    temperature: float


@dataclass
class EntropyBoundSchedulerOutput(scheduling_entropy_bound.EntropyBoundSchedulerOutput):
    """The output of diffusers, whose `pred_logits` are made when they are first asked for.

    A division of all logits takes several times as long as the step: where nobody conditions on them it is
    left out. Until then the logits that the step was given must stay as they are.
    """

    def __post_init__(self) -> None:
        """Enter the fields as diffusers does, which would look at `pred_logits`."""
        for field in fields(self):
            OrderedDict.__setitem__(self, field.name, object.__getattribute__(self, field.name))

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "pred_logits" and isinstance(value, _Quotient):
            value = value.logits / value.temperature
            self.pred_logits = value
        return value

    def items(self):
        """As of any dict, with `pred_logits` made."""
        _ = self.pred_logits
        return super().items()

    def values(self):
        """As of any dict, with `pred_logits` made."""
        _ = self.pred_logits
        return super().values()


class EntropyBoundScheduler(diffusers.EntropyBoundScheduler):
    """`diffusers.EntropyBoundScheduler` in two calls: `glauber_step` for tokens and entropies, `commit`.

    Entropies are float32 whatever the logits are, and are summed without rounding. A temperature of 0 takes
    the likeliest tokens.
    """

    def step(
        self,
        model_output: Logits | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        *,
        entropy_bound: float | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        hidden: torch.Tensor | None = None,
        lm_head: torch.nn.Module | torch.Tensor | None = None,
        softcap: float | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> EntropyBoundSchedulerOutput | tuple:
        """Accept the tokens of least entropy within the bound, and noise the others.

        Parameters
        ----------
        model_output : torch.Tensor, LinearLogits or None
            Logits [B, L, V]; None where `hidden` and `lm_head` are given.
        timestep : int or torch.Tensor
            Number of this step, which sets the temperature.
        sample : torch.Tensor
            Tokens [B, L]; left as they are.
        entropy_bound : float, optional
            In place of the configured one, 0 or more.
        generator : torch.Generator, optional
            Gives one number, the seed of the step; None is torch's own on the CPU.
        return_dict : bool
            Whether to return an `EntropyBoundSchedulerOutput` and not a tuple.
        hidden, lm_head : optional
            Hidden states [B, L, d] and the head (a linear module, or its weight [V, d]) that makes logits of
            them: no [B, L, V] tensor is made. `pred_logits` are `LinearLogits` then.
        softcap : float, optional
            Soft cap of the logits that `lm_head` gives.
        sample_ids : torch.Tensor, optional
            Coordinate of each sequence in the noise, integer [B]; default 0 .. B - 1.

        Returns
        -------
        EntropyBoundSchedulerOutput or tuple
            `prev_sample`, `accepted_index`, `sampled_tokens`, `sampled_probs`, `pred_logits`.
        """
        logits = logits_of(model_output, hidden, lm_head, softcap)
        temperature = self._temperature(int(timestep))
        seed = seed_from(generator)
        coordinates: dict[str, Any] = {"seed": seed, "step": 0, "sample_ids": sample_ids}
        tokens, known = drawn(sample, logits, ("entropy", "log_prob"), temperature=temperature, **coordinates)
        accepted = torch.empty(sample.shape, dtype=torch.bool, device=sample.device)
        previous = commit(
            sample.clone(),
            tokens,
            -known["entropy"],
            budget=self.config.entropy_bound if entropy_bound is None else entropy_bound,
            rest="noise",
            vocab_size=logits.shape[-1],
            accepted=accepted,
            **coordinates,
        )
        tempered: Any = (
            logits / temperature if isinstance(logits, LinearLogits) else _Quotient(logits, temperature)
        )
        output = EntropyBoundSchedulerOutput(
            prev_sample=previous,
            accepted_index=accepted,
            sampled_tokens=tokens,
            sampled_probs=known["log_prob"].exp(),
            pred_logits=tempered,
        )
        return output if return_dict else output.to_tuple()

    def _temperature(self, step: int) -> float:
        """From `t_max` in the first step towards `t_min`, which would be that of one step more."""
        share_left = (self.num_inference_steps - step) / self.num_inference_steps
        return self.config.t_min + (self.config.t_max - self.config.t_min) * share_left
