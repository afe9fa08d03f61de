"""`BlockRefinementScheduler`: commit tokens by confidence, at a masked or at a uniformly noised block."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput

from ggm_kernels.integrations.draws import Logits, drawn, logits_of, seed_from
from ggm_kernels.ops.commit import commit


class BlockRefinementScheduler(diffusers.BlockRefinementScheduler):
    """`diffusers.BlockRefinementScheduler` in two calls: `glauber_step` for tokens and confidence, `commit`.

    No loop over sequences, and no number of the step is read by the host. Equal confidences are committed in
    the order of their positions; of equal logits, filters keep all or none.
    """

    _committed: Any

    def step(
        self,
        model_output: Logits | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        hidden: torch.Tensor | None = None,
        lm_head: torch.nn.Module | torch.Tensor | None = None,
        softcap: float | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> BlockRefinementSchedulerOutput | tuple:
        """Draw tokens, commit the sure ones and as many as the step owes, edit committed ones where asked to.

        Parameters
        ----------
        model_output, hidden, lm_head, softcap, generator, sample_ids
            As in `EntropyBoundScheduler.step`.
        timestep : int or torch.Tensor
            Number of this step within the block.
        sample : torch.Tensor
            Tokens of the block [B, L]; left as they are.
        mask_token_id : int, optional
            The mask; None for uniform noise, where the scheduler remembers what it committed since step 0.
        temperature, top_k, top_p, sampling_method
            How tokens are drawn, as in diffusers: "greedy", "multinomial", or "auto", which is greedy at
            temperature 0.
        threshold, editing_threshold : float, optional
            In place of the configured ones.
        minimal_topk : int, optional
            Taken, and as in diffusers not used.
        prompt_mask : torch.Tensor, optional
            bool [L]: positions that are not edited.
        return_dict : bool
            Whether to return a `BlockRefinementSchedulerOutput` and not a tuple.

        Returns
        -------
        BlockRefinementSchedulerOutput or tuple
            `prev_sample`, `transfer_index`, `editing_transfer_index`, `sampled_tokens`, `sampled_probs`,
            `pred_logits`.
        """
        logits = logits_of(model_output, hidden, lm_head, softcap)
        threshold = float(self.config.threshold if threshold is None else threshold)
        edit_from = self.config.editing_threshold if editing_threshold is None else editing_threshold
        coordinates: dict[str, Any] = {"seed": seed_from(generator), "step": 0, "sample_ids": sample_ids}
        law = _law(temperature, top_k, top_p, sampling_method, logits.shape[-1])
        name = "log_prob" if law else "raw_log_prob"
        tokens, known = drawn(sample, logits, (name,), **(law or {"temperature": 0.0}), **coordinates)
        confidence = known[name].exp()
        commits: dict[str, Any] = {
            "tokens": sample.clone(),
            "proposal": tokens,
            "score": confidence,
            **coordinates,
        }
        if mask_token_id is None:
            commits |= {"rest": "noise", "vocab_size": logits.shape[-1]}
            previous, transfer, edited = self._uniform(
                int(timestep), sample, commits, confidence > threshold, edit_from
            )
        else:
            previous, transfer, edited = self._masked(
                int(timestep),
                sample == mask_token_id,
                commits,
                confidence > threshold,
                edit_from,
                prompt_mask,
            )
        previous = torch.where(edited, tokens, previous)
        if not return_dict:
            return previous, transfer, edited, tokens, confidence, logits
        return BlockRefinementSchedulerOutput(
            prev_sample=previous,
            transfer_index=transfer,
            editing_transfer_index=edited,
            sampled_tokens=tokens,
            sampled_probs=confidence,
            pred_logits=logits,
        )

    def _masked(self, step: int, masked, commits, is_sure, edit_from, prompt_mask):
        """Fill masks: all that are sure, or else as many as the schedule says; edit other tokens."""
        schedule = self._transfer_schedule
        if schedule is None:  # nobody said how many steps there are
            transfer, previous = torch.zeros_like(masked), commits["tokens"]
        else:
            owed = schedule[min(step, len(schedule) - 1)].to(masked.device)
            previous, transfer = _committed(commits, masked, is_sure, owed)
        edited = torch.zeros_like(masked)
        if edit_from is not None and edit_from > 0.0:
            edited = ~masked & (commits["score"] > float(edit_from)) & (commits["proposal"] != previous)
            if prompt_mask is not None:
                edited &= ~prompt_mask
        return previous, transfer, edited

    def _uniform(self, step: int, sample, commits, is_sure, edit_from):
        """Commit what is sure and what is owed by now, and noise the rest; edit what was committed before."""
        before = self._committed
        if step == 0 or before is None or before.shape != sample.shape:
            before = torch.zeros_like(sample, dtype=torch.bool)
        due = -(-(step + 1) * sample.shape[1] // self.num_inference_steps)
        owed = (due - before.sum(1)).clamp_min(0)
        previous, transfer = _committed(commits, ~before, is_sure, owed)
        self._committed = before | transfer
        edited = torch.zeros_like(transfer)
        if edit_from is not None:
            edited = before & (commits["score"] > float(edit_from)) & (commits["proposal"] != sample)
        return previous, transfer, edited


def _law(temperature: float, top_k, top_p, method: str, vocab_size: int) -> dict:
    """Options of the draw; none for the likeliest token, with the confidence of plain logits."""
    if temperature < 0:
        raise ValueError(f"temperature: got {temperature}; allowed: 0 or more")
    if temperature == 0 or method not in ("auto", "multinomial"):
        return {}
    return {
        "temperature": temperature,
        "top_k": None if top_k is None or top_k <= 0 else min(top_k, vocab_size),
        "top_p": None if top_p is None or top_p >= 1 else top_p,
    }


def _committed(commits: dict, eligible, is_sure, owed) -> tuple[torch.Tensor, torch.Tensor]:
    """The sure ones, or the `owed` surest where these are more; what was accepted."""
    accepted = torch.empty_like(eligible)
    count = torch.maximum((is_sure & eligible).sum(1), owed)
    previous = commit(**commits, count=count, eligible=eligible, accepted=accepted)
    return previous, accepted
