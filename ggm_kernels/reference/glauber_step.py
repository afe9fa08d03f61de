"""Reference of `glauber_step` and `linear_glauber_step`.

Rows are the (sequence, updated position) pairs. Heat bath: the new token is argmax_v of
log p_v - log E_v with E_v = -log1p(-u_v) exponential, i.e. a draw from p. Keep-or-replace first keeps
the present token a with probability sigmoid(f), f = g(a) + log((1 - eps) / eps) - log pi(a).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from ggm_kernels.reference import philox

_CHUNK = 2**20  # logits handled at once


@dataclass(frozen=True)
class Draw:
    """How a new token is drawn: the arguments that shape the race."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None


def glauber_step(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    positions: torch.Tensor,
    seed: int,
    step: int | torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    noise_rate: torch.Tensor | None,
    noise_log_probs: torch.Tensor | None,
    normalize: bool,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
) -> None:
    """Update ``tokens[b, positions[b, k]]`` in place from logits [B, K, V]."""
    rows = _Rows(tokens, positions, seed, step, noise_rate, noise_log_probs, normalize, sample_ids, frozen)
    flat = logits.flatten(0, 1)
    draw = Draw(temperature, top_k, top_p, min_p)
    for part in _chunks(rows.count, flat.shape[1]):
        rows.update(part, flat[part], draw)


def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor | None,
    seed: int,
    step: int | torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    noise_rate: torch.Tensor | None,
    noise_log_probs: torch.Tensor | None,
    normalize: bool,
    sample_ids: torch.Tensor | None,
    frozen: torch.Tensor | None,
) -> None:
    """`glauber_step` on hidden [B, K, d] @ weight [V, d].T + bias, a block of rows at a time."""
    rows = _Rows(tokens, positions, seed, step, noise_rate, noise_log_probs, normalize, sample_ids, frozen)
    flat = hidden.flatten(0, 1)
    draw = Draw(temperature, top_k, top_p, min_p)
    for part in _chunks(rows.count, weight.shape[0]):
        rows.update(part, linear(flat[part], weight, bias), draw)


class _Rows:
    """The coordinates of all rows, and the update of a slice of them."""

    def __init__(self, tokens, positions, seed, step, noise_rate, noise_log_probs, normalize, sample_ids, frozen):
        batch, _ = tokens.shape
        if positions.dim() == 1:
            positions = positions.expand(batch, -1)
        if sample_ids is None:
            sample_ids = torch.arange(batch, device=tokens.device)
        per_sequence = positions.shape[1]
        self.tokens, self.seed, self.step, self.normalize = tokens, seed, step, normalize
        self.count = positions.numel()
        self.positions = positions.long().flatten()
        self.batch_index = torch.arange(batch, device=tokens.device).repeat_interleave(per_sequence)
        self.sample_ids = sample_ids[self.batch_index]
        self.frozen = None if frozen is None else frozen[self.batch_index, self.positions]
        self.noise_log_probs = noise_log_probs
        self.noise_rate = None
        if noise_rate is not None:
            rate = noise_rate if noise_rate.dim() == 2 else noise_rate[:, None]
            self.noise_rate = rate.expand(-1, per_sequence).flatten().to(torch.float32)

    def update(self, part: slice, logits: torch.Tensor, draw: Draw) -> None:
        g = logits.to(torch.float32)
        batch_index, positions = self.batch_index[part], self.positions[part]
        present = self.tokens[batch_index, positions]
        changes = g.isnan().logical_not().all(1) & (g > -math.inf).any(1)
        if self.frozen is not None:
            changes &= ~self.frozen[part]
        if self.noise_rate is not None:
            changes &= ~self._keeps(part, g, present)
        words = philox.race_words(self.seed, self.step, self.sample_ids[part], positions, g.shape[1])
        winner = _race(g, words, draw)
        self.tokens[batch_index, positions] = torch.where(changes, winner.to(present.dtype), present)

    def _keeps(self, part: slice, g: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        verdict = g.gather(1, present.long()[:, None]).squeeze(1)
        if self.normalize:
            verdict = verdict - g.logsumexp(1)
        eps = self.noise_rate[part]
        if self.noise_log_probs is None:
            minus_log_pi = math.log(g.shape[1])
        else:
            minus_log_pi = -self.noise_log_probs[present.long()]
        f = verdict + (torch.log1p(-eps) - torch.log(eps)) + minus_log_pi
        word = philox.keep_words(self.seed, self.step, self.sample_ids[part], self.positions[part])
        return keep_decision(f, word)


def keep_decision(f: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """True with probability sigmoid(f), from a word in [0, 2**32); NaN keeps.

    Compares the rarer outcome with a uniform near 0, where float32 has 32 random bits to give.
    """
    replaces = philox.uniform(word) < torch.sigmoid(-f)
    keeps = philox.uniform(0xFFFFFFFF - word) < torch.sigmoid(f)
    return torch.where(f < 0, keeps, ~replaces)


def _race(g: torch.Tensor, words: torch.Tensor, draw: Draw) -> torch.Tensor:
    if draw.temperature == 0:
        return _first_argmax(g)
    top = g.amax(1, keepdim=True)
    z = torch.where(g == top, 0.0, (g - top) / draw.temperature)  # <= 0: no temperature overflows it
    z = _filtered(z, draw)
    return _first_argmax(z - torch.log(-torch.log1p(-philox.uniform(words))))


def _filtered(z: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Set to -inf what top-k, then top-p, then min-p leave out; equal logits share one fate."""
    if draw.top_k is not None and draw.top_k < z.shape[1]:
        z = z.masked_fill(z < z.topk(draw.top_k, dim=1).values[:, -1:], -math.inf)
    if draw.top_p is not None and draw.top_p < 1:
        ordered = z.sort(dim=1, descending=True).values
        probs = ordered.softmax(1)
        mass_above = probs.cumsum(1) - probs
        last = (mass_above < draw.top_p).sum(1, keepdim=True) - 1
        z = z.masked_fill(z < ordered.gather(1, last.clamp_min(0)), -math.inf)
    if draw.min_p is not None and draw.min_p > 0:
        z = z.masked_fill(z < z.amax(1, keepdim=True) + math.log(draw.min_p), -math.inf)
    return z


def _first_argmax(score: torch.Tensor) -> torch.Tensor:
    # torch.argmax leaves open which of equal maxima it returns; all backends take the first.
    vocab = score.shape[1]
    index = torch.arange(vocab, device=score.device)
    return torch.where(score == score.amax(1, keepdim=True), index, vocab - 1).amin(1)


def _chunks(rows: int, vocab_size: int) -> list[slice]:
    size = max(1, _CHUNK // vocab_size)
    return [slice(start, start + size) for start in range(0, rows, size)]
