"""`linear_head`: a loaded model gives logits that are not multiplied out."""

from __future__ import annotations

import torch
from transformers import DiffusionGemmaForBlockDiffusion, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ggm_kernels.integrations.linear_logits import LinearLogits
from ggm_kernels.integrations.transformers.replaced import Replaced
from ggm_kernels.integrations.transformers.self_conditioning import SelfConditioning


def linear_head(model: PreTrainedModel) -> Replaced:
    """Have ``model(..)`` return `LinearLogits`, until the result's `remove()`.

    For pipelines of diffusers with the schedulers of this package: these draw from hidden states then,
    though the pipeline hands on what it takes for logits. LLaDA2's pipeline takes the logits of a block out
    of all positions: only that block goes through the head. DiffusionGemma's looks at all logits itself to
    stop early; give it ``confidence_threshold=None``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A language model with a linear head on the last hidden states of its base model, and if at all a soft
        cap as ``config.final_logit_softcapping``.

    Returns
    -------
    Replaced
        Its `remove()`, or the end of a ``with`` block, gives the model its own `forward` back.

    Raises
    ------
    TypeError
        If the model has no such head.
    RuntimeError
        If that is done already.
    """
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), torch.Tensor):
        raise TypeError(f"model: got {type(model).__name__}; allowed: one with a linear head")
    softcap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    if isinstance(model, DiffusionGemmaForBlockDiffusion):
        conditioning = SelfConditioning(model)

        def conditioned(self_conditioning_logits=None, **arguments) -> CausalLMOutput:
            hidden = conditioning.hidden_states(self_conditioning_logits, **arguments)
            return CausalLMOutput(logits=LinearLogits.of(hidden, head, softcap))

        return Replaced(model, {"forward": conditioned}, conditioning.remove)

    def forward(*inputs, **arguments) -> CausalLMOutput:
        outputs = model.base_model(*inputs, **arguments)
        return CausalLMOutput(logits=LinearLogits.of(outputs.last_hidden_state, head, softcap))

    return Replaced(model, {"forward": forward}, lambda: None)
