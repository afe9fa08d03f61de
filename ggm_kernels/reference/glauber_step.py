"""Reference of `glauber_step` and `linear_glauber_step`.

Rows are the (sequence, updated position) pairs. Heat bath: the new token is argmax_v of
log p_v - log E_v with E_v = -log1p(-u_v) exponential, i.e. a draw from p. Keep-or-replace first keeps
the present token a with probability sigmoid(f), f = g(a) + log((1 - eps) / eps) - log pi(a).
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import linear

from ggm_kernels.ops.glauber_step import Update
from ggm_kernels.reference import philox
from ggm_kernels.reference.precision import without_autocast

_CHUNK = 2**20  # logits handled at once


def glauber_step(tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> None:
    """Update ``tokens[b, positions[b, k]]`` in place from logits [B, K, V]."""
    rows = _Rows(tokens, update)
    flat = logits.flatten(0, 1)
    for part in rows.chunks(flat.shape[1]):
        rows.resample(part, flat[part])


@without_autocast
def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
) -> None:
    """`glauber_step` on hidden [B, K, d] @ weight [V, d].T + bias, a block of rows at a time."""
    rows = _Rows(tokens, update)
    flat = hidden.flatten(0, 1)
    for part in rows.chunks(weight.shape[0]):
        rows.resample(part, linear(flat[part], weight, bias))


class _Rows:
    """The B * K rows of a step, flat: where each is in `tokens`, and the resampling of a slice of them."""

    def __init__(self, tokens: torch.Tensor, update: Update) -> None:
        batch = tokens.shape[0]
        positions = update.positions if update.positions.dim() == 2 else update.positions.expand(batch, -1)
        per_sequence = positions.shape[1]
        sample_ids = (
            torch.arange(batch, device=tokens.device) if update.sample_ids is None else update.sample_ids
        )
        self.tokens, self.update = tokens, update
        self.batch_index = torch.arange(batch, device=tokens.device).repeat_interleave(per_sequence)
        self.positions = positions.long().flatten()
        self.sample_ids = sample_ids[self.batch_index]

    def chunks(self, vocab_size: int) -> list[slice]:
        """Slices of rows that hold few enough logits to work on at once."""
        size = max(1, _CHUNK // vocab_size)
        return [slice(start, start + size) for start in range(0, self.positions.numel(), size)]

    def resample(self, part: slice, logits: torch.Tensor) -> None:
        g = logits.to(torch.float32)
        at = self.batch_index[part], self.positions[part]
        present = self.tokens[at]
        changes = g.isnan().logical_not().all(1) & (g > -math.inf).any(1)
        if self.update.frozen is not None:
            changes &= ~self.update.frozen[at]
            g = torch.where(self.update.frozen[at][:, None], math.nan, g)  # nothing is said of frozen rows
        if self.update.noise_rate is not None:
            f = self._verdict(part, g, present)
            word = philox.keep_words(self.update.seed, self.update.step, self.sample_ids[part], at[1])
            changes &= ~keep_decision(f, word)
            self._note(self.update.keep_prob, part, torch.sigmoid(f))
        words = philox.race_words(
            self.update.seed, self.update.step, self.sample_ids[part], at[1], g.shape[1]
        )
        z = _filtered_law(g, self.update)
        winner = _first_argmax(z if self.update.temperature == 0 else _scores(z, words))
        self.tokens[at] = torch.where(changes, winner.to(present.dtype), present)
        log_prob = (z - z.logsumexp(1, keepdim=True)).gather(1, winner[:, None]).squeeze(1)
        self._note(self.update.log_prob, part, torch.where(changes, log_prob, math.nan))
        self._note(self.update.log_sum_exp, part, g.logsumexp(1))

    @staticmethod
    def _note(by_product: torch.Tensor | None, part: slice, values: torch.Tensor) -> None:
        if by_product is not None:
            by_product.view(-1)[part] = values

    def _verdict(self, part: slice, g: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logit f of "the present token is signal"."""
        rate, log_pi = self.update.noise_rate, self.update.noise_log_probs
        assert rate is not None
        per_row = rate if rate.dim() == 2 else rate[:, None]
        per_row = per_row.expand(-1, self.positions.numel() // max(1, per_row.shape[0]))
        eps = per_row.flatten()[part].to(torch.float32)
        verdict = g.gather(1, present.long()[:, None]).squeeze(1)
        if self.update.normalize:
            verdict = verdict - g.logsumexp(1)
        uniform = torch.full_like(verdict, -math.log(g.shape[1]))
        return _log_odds(verdict, eps, uniform if log_pi is None else log_pi[present.long()])


def _log_odds(g: torch.Tensor, eps: torch.Tensor, log_pi: torch.Tensor) -> torch.Tensor:
    """Log-odds that a token is signal: certain where it cannot be noise, whatever g but NaN."""
    f = g + (torch.log1p(-eps) - torch.log(eps)) - log_pi
    f = torch.where((eps >= 1) | (g == -math.inf), -math.inf, f)
    f = torch.where((eps <= 0) | (log_pi == -math.inf), math.inf, f)
    return torch.where(g.isnan(), g, f)


def keep_decision(f: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """True with probability sigmoid(f), from a word in [0, 2**32); NaN keeps.

    Compares the rarer outcome with a uniform near 0, where float32 has 32 random bits to give.
    """
    replaces = philox.uniform(word) < torch.sigmoid(-f)
    keeps = philox.uniform(0xFFFFFFFF - word) < torch.sigmoid(f)
    return torch.where(f < 0, keeps, ~replaces)


def _scores(z: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return z - torch.log(-torch.log1p(-philox.uniform(words)))


def _filtered_law(g: torch.Tensor, update: Update) -> torch.Tensor:
    """Logits, up to a constant per row, of the law that a token is drawn from."""
    top = g.amax(1, keepdim=True)
    if update.temperature == 0:  # a law on one token: the first of the largest
        tokens = torch.arange(g.shape[1], device=g.device)
        return torch.where(tokens == _first_argmax(g)[:, None], 0.0, -math.inf)
    # <= 0, so no temperature that float32 holds overflows it; 0 at the top, be it infinite
    z = torch.where(g == top, 0.0, (g - top) / min(update.temperature, 3e38))
    return _filtered(z, update)


def _filtered(z: torch.Tensor, update: Update) -> torch.Tensor:
    """Set to -inf what top-k, then top-p, then min-p leave out; equal logits share one fate."""
    if update.top_k is not None and update.top_k < z.shape[1]:
        z = z.masked_fill(z < z.topk(update.top_k, dim=1).values[:, -1:], -math.inf)
    if update.top_p is not None and update.top_p < 1:
        ordered = z.sort(dim=1, descending=True).values
        probs = ordered.double().softmax(1)
        mass_above = probs.cumsum(1) - probs
        last = (mass_above < update.top_p).sum(1, keepdim=True) - 1
        z = z.masked_fill(z < ordered.gather(1, last.clamp_min(0)), -math.inf)
    if update.min_p is not None and update.min_p > 0:
        z = z.masked_fill(z < math.log(update.min_p), -math.inf)  # the largest is 0
    return z


def _first_argmax(score: torch.Tensor) -> torch.Tensor:
    # torch.argmax leaves open which of equal maxima it returns; all backends take the first.
    vocab = score.shape[1]
    index = torch.arange(vocab, device=score.device)
    return torch.where(score == score.amax(1, keepdim=True), index, vocab - 1).amin(1)
