"""What the samplers have in common: the seed of a step, and a token for every position from its logits."""

from __future__ import annotations

from typing import Any

import torch

from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.ops.glauber_step import glauber_step, linear_glauber_step

Logits = torch.Tensor | LinearLogits


def seed_from(generator: torch.Generator | None) -> int:
    """A seed of 63 bits, the next number of a generator; None is torch's own of the CPU.

    The number of a generator on a GPU is waited for; one on the CPU serves tensors of any device.
    """
    device = "cpu" if generator is None else generator.device
    return int(torch.empty((), dtype=torch.int64, device=device).random_(generator=generator))


def logits_of(
    model_output: Logits | None,
    hidden: torch.Tensor | None,
    lm_head: torch.nn.Module | torch.Tensor | None,
    softcap: float | None,
) -> Logits:
    """Logits of a step, given as such or as hidden states and the head that they go through.

    Raises
    ------
    ValueError
        Where neither or both are given, or logits that were divided by a temperature already.
    """
    if (model_output is None) != (hidden is not None and lm_head is not None):
        raise ValueError(
            "model_output: got both or neither of logits and hidden states; allowed: logits, or None with "
            "hidden= and lm_head="
        )
    if hidden is not None and lm_head is not None:
        return LinearLogits.of(hidden, lm_head, softcap)
    assert model_output is not None
    if isinstance(model_output, LinearLogits):
        if model_output.temperature != 1:
            raise ValueError(
                f"model_output: got logits of temperature {model_output.temperature}; allowed: those of "
                "temperature 1"
            )
        return model_output
    return model_output.float() if model_output.dtype == torch.float64 else model_output


def drawn(
    sample: torch.Tensor, logits: Logits, asked: tuple[str, ...], **options
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A token for every position, and what is asked for of `glauber_step`'s by-products, by name.

    `sample` [B, L] is left as it is; `options` are those of `glauber_step`.
    """
    tokens = sample.clone()
    known: dict[str, Any] = {
        name: torch.empty(
            sample.shape, dtype=torch.int64 if name == "argmax" else torch.float32, device=sample.device
        )
        for name in asked
    }
    if isinstance(logits, LinearLogits):
        linear_glauber_step(
            tokens, logits.hidden, logits.weight, None, bias=logits.bias, softcap=logits.softcap,
            **known, **options,
        )  # fmt: skip
    else:
        glauber_step(tokens, logits, None, **known, **options)
    return tokens, known


def logits_at(logits: Logits, tokens: torch.Tensor) -> torch.Tensor:
    """The logit of one token a position: float32, as `tokens` [B, L]."""
    if isinstance(logits, LinearLogits):
        return logits.at(tokens)
    return logits.gather(-1, tokens[..., None]).squeeze(-1).float()
