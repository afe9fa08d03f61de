"""What a Glauber step is told beside its logits."""

from __future__ import annotations

from typing import NamedTuple

import torch

BY_PRODUCTS = ("log_sum_exp", "log_prob", "keep_prob", "raw_log_prob", "entropy", "margin", "argmax")


class Update(NamedTuple):
    """Which rows a step updates and how: checked arguments, as backends get them.

    A tuple, and no frozen dataclass, which takes 4 us to make: a tenth of a small call.
    `seed` and `step` are ints, 0-d int64 tensors (step) or int64 [B]; `temperature`, `top_k`, `top_p` and
    `min_p` numbers or tensors (float32, int64) [B] or [B, K]. `noise_log_probs` is the law of the noise
    [token_bound] or None (uniform), which a mixture draws by `noise_table` or `noise_mask`; the rest as in
    `glauber_step`.
    """

    positions: torch.Tensor
    seed: int | torch.Tensor
    step: int | torch.Tensor
    temperature: float | torch.Tensor
    top_k: int | torch.Tensor | None
    top_p: float | torch.Tensor | None
    min_p: float | torch.Tensor | None
    noise_rate: torch.Tensor | None
    noise_log_probs: torch.Tensor | None
    noise_table: torch.Tensor | None
    noise_mask: int | None
    normalize: bool
    sample_ids: torch.Tensor | None
    frozen: torch.Tensor | None
    top_p_first: bool
    softcap: float | None
    logit_shift: torch.Tensor | None
    mixture: torch.Tensor | None
    log_sum_exp: torch.Tensor | None
    log_prob: torch.Tensor | None
    keep_prob: torch.Tensor | None
    raw_log_prob: torch.Tensor | None
    entropy: torch.Tensor | None
    margin: torch.Tensor | None
    argmax: torch.Tensor | None

    @property
    def reads_present(self) -> bool:
        """Whether the token that stands in a row is looked at."""
        return self.noise_rate is not None or self.logit_shift is not None

    def token_bound(self, vocab_size: int) -> int:
        """Tokens that stand in rows are below it: V, or V + 1 where the noise has a mask of its own."""
        return vocab_size if self.noise_log_probs is None else self.noise_log_probs.shape[0]

    @property
    def read(self) -> dict[str, torch.Tensor]:
        """The tensors that are not written, beside what the logits come from."""
        given = zip(self._fields, self[: -len(BY_PRODUCTS)], strict=False)
        return {name: value for name, value in given if value is not None and isinstance(value, torch.Tensor)}

    @property
    def by_products(self) -> dict[str, torch.Tensor]:
        """The by-products that are asked for."""
        return {name: value for name in BY_PRODUCTS if (value := getattr(self, name)) is not None}


def idle_rows(tokens: torch.Tensor, update: Update) -> torch.Tensor:
    """Rows that have no position or a frozen one: bool [B, K]."""
    positions = update.positions.long()
    positions = positions if positions.dim() == 2 else positions.expand(tokens.shape[0], -1)
    idle = positions < 0
    if update.frozen is not None and tokens.shape[1] > 0:
        # Positions may not have been looked at yet.
        idle = idle | update.frozen.gather(1, positions.clamp(0, tokens.shape[1] - 1))
    return idle
