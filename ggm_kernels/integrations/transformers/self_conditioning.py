"""Self-conditioning of DiffusionGemma by mean embeddings that are not made from logits."""

from __future__ import annotations

from typing import Any

import torch

from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.ops.linear_expected_embedding import linear_expected_embedding


class SelfConditioning:
    """Gives the decoder of a `DiffusionGemmaForBlockDiffusion` mean embeddings in the place of its own.

    A hook ahead of the module that takes them: without logits the decoder has zeros for it, which are
    replaced.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._soft: torch.Tensor | None = None
        self._run: Any = model.model
        self._compiled: Any = None
        self._handle = model.model.decoder.self_conditioning.register_forward_pre_hook(self._replace)

    def compile(self, wanted: bool) -> None:
        """Whether the model below its head runs compiled from now on."""
        if wanted and self._compiled is None:
            self._compiled = torch.compile(self._model.model, mode="reduce-overhead", fullgraph=True)
        self._run = self._compiled if wanted else self._model.model

    def remove(self) -> None:
        """Take the hook out."""
        self._handle.remove()

    def hidden_states(self, logits: LinearLogits | torch.Tensor | None, **arguments) -> torch.Tensor:
        """Last hidden states [B, L, d] of the model, conditioned on the logits of the step before."""
        if isinstance(logits, LinearLogits):
            self._soft, logits = self.mean_embedding(logits), None
        try:
            hidden = self._run(self_conditioning_logits=logits, **arguments).last_hidden_state
        finally:
            self._soft = None
        return (
            hidden if self._run is not self._compiled else hidden.clone()
        )  # a graph's next replay writes there

    def mean_embedding(self, logits: LinearLogits) -> torch.Tensor:
        """softmax(logits) @ embedding, scaled as embeddings are: [B, L, d]."""
        embed = self._model.model.decoder.embed_tokens
        mean = linear_expected_embedding(
            logits.hidden.flatten(0, 1),
            logits.weight,
            embed.weight,
            bias=logits.bias,
            softcap=logits.softcap,
            temperature=logits.temperature,
        )
        return mean.unflatten(0, logits.hidden.shape[:2]) * embed.embed_scale.to(mean.dtype)

    def _replace(self, module: torch.nn.Module, inputs: tuple) -> tuple | None:
        return None if self._soft is None else (inputs[0], self._soft)
