"""Self-conditioning of DiffusionGemma by mean embeddings that are not made from logits."""

from __future__ import annotations

import torch

from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.ops.linear_expected_embedding import linear_expected_embedding


class SelfConditioning:
    """Gives the decoder of a `DiffusionGemmaForBlockDiffusion` mean embeddings in the place of its own.

    A hook ahead of the module that takes them: without logits the decoder has zeros for it, which are replaced.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._soft: torch.Tensor | None = None
        self._handle = model.model.decoder.self_conditioning.register_forward_pre_hook(self._replace)

    def remove(self) -> None:
        """Take the hook out."""
        self._handle.remove()

    def hidden_states(self, logits: LinearLogits | torch.Tensor | None, **arguments):
        """Outputs of the model below its head, conditioned on the logits of the step before."""
        if isinstance(logits, LinearLogits):
            return self._conditioned(self.mean_embedding(logits), **arguments)
        return self._model.model(self_conditioning_logits=logits, **arguments)

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

    def _conditioned(self, soft: torch.Tensor, **arguments):
        self._soft = soft
        try:
            return self._model.model(self_conditioning_logits=None, **arguments)
        finally:
            self._soft = None

    def _replace(self, module: torch.nn.Module, inputs: tuple) -> tuple | None:
        return None if self._soft is None else (inputs[0], self._soft)
