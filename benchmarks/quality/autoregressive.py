"""An autoregressive transformer: the yardstick, and the evaluator of texts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.quality.network import PlainTransformer
from benchmarks.quality.system import Drawn, Request, Shape
from ggm_kernels import glauber_step


class Autoregressive(nn.Module):
    """The system; its sampler is "raster". A step evaluates the network once, without a cache of keys."""

    samplers = ("raster",)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.first = shape, shape.vocab_size
        self.network = PlainTransformer(
            shape.size, shape.vocab_size + 1, shape.vocab_size, shape.length, causal=True
        )

    def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        """log p(x_i | x_{<i}), float32 [B, L]."""
        logits = self._logits(tokens)
        return -cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([torch.full_like(tokens[:, :1], self.first), tokens[:, :-1]], dim=1))

    def loss(self, tokens: torch.Tensor, seed: int, step: int, sample_ids: torch.Tensor) -> torch.Tensor:
        """-log p in nats per token."""
        return -self.log_probs(tokens).mean()

    def steps_near(self, sampler: str, evaluations: int) -> int | None:
        """As many as there are positions, whatever is asked for."""
        return self.shape.length

    @torch.inference_mode()
    def sample(self, request: Request) -> Drawn:
        """Sequences from the first token to the last; what is given is kept, and seen from there on only."""
        device = self.network.bias.device
        tokens = request.start(
            torch.zeros(request.count, self.shape.length, dtype=torch.int64, device=device)
        )
        for i in range(self.shape.length):
            logits = self._logits(tokens)[:, i : i + 1].contiguous()
            glauber_step(
                tokens,
                logits,
                torch.tensor([i], device=device),
                seed=request.seed,
                step=i,
                temperature=request.temperature,
                frozen=request.given,
            )
        return Drawn(tokens, float(self.shape.length))

    @torch.inference_mode()
    def bound(self, tokens: torch.Tensor, times: int, seed: int) -> torch.Tensor:
        """-log p itself."""
        return -self.log_probs(tokens).double().sum(dim=1).cpu()
