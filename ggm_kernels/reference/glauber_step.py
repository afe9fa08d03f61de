"""Reference of `glauber_step` and `linear_glauber_step`.

Rows are the (sequence, updated position) pairs. Heat bath: a draw from p = softmax(z) as a race of two
levels. The group of RACE_GROUP tokens with the largest log S - log E wins, S its mass and E its exponential;
inside it the token with the largest log p_v - log E_v, E_v = -log1p(-u_v). Keep-or-replace first keeps the
present token a with probability sigmoid(f), f = g(a) + log((1 - eps) / eps) - log pi(a). A mixture draws from
pi instead with probability 1 - alpha.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import linear

from ggm_kernels.arguments.glauber_step import Update, idle_rows
from ggm_kernels.randomness import RACE_GROUP
from ggm_kernels.reference import philox
from ggm_kernels.reference.precision import without_autocast
from ggm_kernels.reference.threshold import filtered

_CHUNK = 2**20  # logits handled at once


def glauber_step(tokens: torch.Tensor, logits: torch.Tensor, update: Update) -> int | None:
    """Update ``tokens[b, positions[b, k]]`` from logits [B, K, V]; counts lawless rows on the CPU."""
    rows = Rows(tokens, update)
    flat = logits.flatten(0, 1)
    for part in rows.chunks(flat.shape[1]):
        rows.resample(part, flat[part])
    return rows.lawless


@without_autocast
def linear_glauber_step(
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    update: Update,
) -> int | None:
    """`glauber_step` on hidden [B, K, d] @ weight [V, d].T + bias, a block of rows at a time."""
    rows = Rows(tokens, update)
    flat = hidden.flatten(0, 1)
    for part in rows.chunks(weight.shape[0]):
        rows.resample(part, linear(flat[part], weight, bias))
    return rows.lawless


class Rows:
    """The B * K rows of a step, flat: where each is in `tokens`, and the resampling of a slice of them."""

    def __init__(self, tokens: torch.Tensor, update: Update) -> None:
        batch = tokens.shape[0]
        positions = update.positions if update.positions.dim() == 2 else update.positions.expand(batch, -1)
        sample_ids = (
            torch.arange(batch, device=tokens.device) if update.sample_ids is None else update.sample_ids
        )
        self.tokens, self.update, self.count = tokens, update, positions.shape[1]
        self.shape = positions.shape
        self.batch_index = torch.arange(batch, device=tokens.device).repeat_interleave(self.count)
        self.idle = idle_rows(tokens, update).flatten()
        self.positions = positions.long().flatten().clamp_min(0)
        self.sample_ids = sample_ids[self.batch_index]
        self.lawless = None if tokens.is_cuda else 0

    def chunks(self, vocab_size: int) -> list[slice]:
        """Slices of rows that hold few enough logits to work on at once."""
        size = max(1, _CHUNK // vocab_size)
        return [slice(start, start + size) for start in range(0, self.positions.numel(), size)]

    def resample(self, part: slice, logits: torch.Tensor) -> None:
        """Settle a slice of rows by their logits."""
        update = self.update
        at = self.batch_index[part], self.positions[part]
        present, idle = self.present(part), self.idle[part]
        g = torch.where(idle[:, None], 0.0, self.edited(part, logits.to(torch.float32), present))
        has_law = g.isnan().logical_not().all(1) & (g > -math.inf).any(1)
        if self.lawless is not None:
            self.lawless += int((~has_law).sum())
        knows = has_law & ~idle
        changes, alpha = knows, self.value("mixture", part, 1.0)
        coordinates = self.coordinates(part)
        keep_word, side_word, *noise_words = philox.keep_words(*coordinates)
        if update.noise_rate is not None:
            f = self._log_odds(part, g, present, alpha)
            changes = changes & ~keep_decision(f, keep_word)
            self.note("keep_prob", part, torch.sigmoid(f), knows)
        z = self._law(part, g)
        drawn = self._winner(z, coordinates)
        if update.mixture is not None:
            noise = self._noise_token(noise_words, g.shape[1])
            drawn = torch.where(takes_law(alpha, side_word), drawn, noise)
        if self.tokens.numel() > 0:
            self.tokens.index_put_((at[0][changes], at[1][changes]), drawn[changes].to(self.tokens.dtype))
        log_prob = _at(z.log_softmax(1), drawn)
        if update.mixture is not None:
            log_prob = _log_mixture(log_prob, alpha, self.log_pi(drawn, g.shape[1]))
        self.note("log_prob", part, log_prob, changes)
        self.note("raw_log_prob", part, _raw_log_prob(g, drawn), changes)
        self.note("log_sum_exp", part, g.logsumexp(1), knows)
        self.note("entropy", part, self._entropy(part, g), knows)
        if update.margin is not None:
            first, second = torch.nn.functional.pad(g, (0, 1), value=-math.inf).topk(2, 1).values.unbind(1)
            self.note("margin", part, torch.where(first == second, 0.0, first - second), knows)
        self.note("argmax", part, _first_argmax(g), knows, unknown=-1)

    def present(self, part: slice) -> torch.Tensor:
        """Tokens that stand in the rows."""
        if self.tokens.shape[1] == 0:  # no row has a position
            return torch.zeros_like(self.positions[part])
        return self.tokens[self.batch_index[part], self.positions[part]].long()

    def edited(self, part: slice, g: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logits with the soft cap and with the shift of the token that stands there."""
        softcap = self.update.softcap
        if softcap is not None:
            g = softcap * torch.tanh(g / softcap)
        if self.update.logit_shift is not None:
            tokens = torch.arange(g.shape[1], device=g.device)
            shift = self.value("logit_shift", part, 0.0)
            g = torch.where(tokens == present[:, None], g + shift[:, None], g)
        return g

    def coordinates(self, part: slice) -> philox.Coordinates:
        """Seed, step, sample ids and positions of the rows."""
        seed, step = (
            value[self.batch_index[part]] if isinstance(value, torch.Tensor) and value.dim() == 1 else value
            for value in (self.update.seed, self.update.step)
        )
        return seed, step, self.sample_ids[part], self.positions[part]

    def value(self, name: str, part: slice, otherwise: float) -> torch.Tensor:
        """An argument that may be None, a number or a tensor [B] or [B, K], by row, float32 [R]."""
        value = getattr(self.update, name)
        value = otherwise if value is None else value
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(float(value), dtype=torch.float32, device=self.tokens.device)
            return value.expand(self.positions[part].shape)
        if value.dim() == 1:
            return value[self.batch_index[part]].to(torch.float32)
        return value.flatten()[part].to(torch.float32)

    def note(self, name: str, part: slice, values, known, unknown: float = math.nan) -> None:
        """Fill a by-product, if it is asked for, where it is known."""
        by_product = getattr(self.update, name)
        if by_product is not None:
            by_product.view(-1)[part] = torch.where(known, values, unknown)

    def log_pi(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Logarithm of the probability of tokens under the noise."""
        log_pi = self.update.noise_log_probs
        if log_pi is None:
            of_each = -math.log(vocab_size)
            return torch.full(tokens.shape, of_each, dtype=torch.float32, device=tokens.device)
        # What is not read, in rows that are frozen or absent, may be any number.
        return log_pi[tokens.clamp(0, len(log_pi) - 1)]

    def _log_odds(self, part: slice, g, present, alpha) -> torch.Tensor:
        """Logit f of "the present token is signal"."""
        h = _raw_log_prob(g, present) if self.update.normalize else _at(g, present)
        log_pi = self.log_pi(present, g.shape[1])
        if self.update.mixture is not None:
            h = _log_mixture(h, alpha, log_pi)
        return log_odds(h, self.value("noise_rate", part, 0.0), log_pi)

    def _law(self, part: slice, g: torch.Tensor) -> torch.Tensor:
        """Logits, up to a constant per row, of the law that a token is drawn from."""
        tokens = torch.arange(g.shape[1], device=g.device)
        greedy = torch.where(tokens == _first_argmax(g)[:, None], 0.0, -math.inf)
        temperature = self.value("temperature", part, 1.0)[:, None]
        return torch.where(temperature == 0, greedy, filtered(self._tempered(part, g), *self._filters(part)))

    def _tempered(self, part: slice, g: torch.Tensor) -> torch.Tensor:
        # <= 0, so no temperature that float32 holds overflows it; 0 at the top, be it infinite
        top = g.amax(1, keepdim=True)
        temperature = self.value("temperature", part, 1.0)[:, None]
        temperature = torch.where(temperature == 0, 1.0, temperature).clamp(1 / 3e38, 2.0**126)
        return torch.where(g == top, 0.0, (g - top) / temperature)

    def _filters(self, part: slice) -> tuple:
        """top_k, top_p and min_p of the rows, [R] or None, and whether top-p comes first."""
        update = self.update
        top_k = update.top_k
        if isinstance(top_k, torch.Tensor):
            top_k = top_k[self.batch_index[part]] if top_k.dim() == 1 else top_k.flatten()[part]
        elif top_k is not None:
            top_k = torch.full(self.positions[part].shape, min(top_k, 2**62), device=self.tokens.device)
        top_p = None if update.top_p is None else self.value("top_p", part, 1.0)
        min_p = None if update.min_p is None else self.value("min_p", part, 0.0)
        return top_k, top_p, min_p, update.top_p_first

    def _entropy(self, part: slice, g: torch.Tensor) -> torch.Tensor:
        log_p = self._tempered(part, g).log_softmax(1)
        entropy = -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(1)
        return torch.where(self.value("temperature", part, 1.0) == 0, 0.0, entropy)

    def _winner(self, z: torch.Tensor, coordinates: philox.Coordinates) -> torch.Tensor:
        groups = -(-z.shape[1] // RACE_GROUP)
        if groups > 1:
            z = _leading_group(z, philox.group_words(*coordinates, groups))
        words = philox.race_words(*coordinates, z.shape[1])
        return _first_argmax(_scores(z, words))

    def _noise_token(self, words, vocab_size: int) -> torch.Tensor:
        column_word, accept_word = words
        table, mask = self.update.noise_table, self.update.noise_mask
        if mask is not None:
            return torch.full_like(column_word, mask)
        column = column_word * vocab_size >> 32
        if table is None:
            return column
        threshold, alias = (table.long() & 0xFFFFFFFF)[column].unbind(1)
        return torch.where(accept_word < threshold, column, alias)


def _raw_log_prob(g: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log softmax of a token per row, less the top first: a log-sum-exp far from 0 is rounded.

    Infinite logits share the mass.
    """
    top = g.amax(1, keepdim=True)
    z = torch.where(top == math.inf, torch.where(g == math.inf, 0.0, -math.inf), g - top)
    return (_at(g, tokens) - top.squeeze(1)) - z.logsumexp(1)


def _at(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The value of a token per row; -inf for a token that has no column."""
    inside = tokens < values.shape[1]
    column = torch.where(inside, tokens, 0).clamp_min(0)
    return torch.where(inside, values.gather(1, column[:, None]).squeeze(1), -math.inf)


def _log_mixture(h: torch.Tensor, alpha: torch.Tensor, log_pi: torch.Tensor) -> torch.Tensor:
    """log(alpha exp(h) + (1 - alpha) pi); NaN for NaN."""
    law = torch.where(alpha > 0, alpha.log() + h, -math.inf)
    mixed = torch.logaddexp(law, torch.where(alpha < 1, torch.log1p(-alpha) + log_pi, -math.inf))
    return torch.where(h.isnan() | (alpha >= 1), h, mixed)


def log_odds(g: torch.Tensor, eps: torch.Tensor, log_pi: torch.Tensor) -> torch.Tensor:
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


def takes_law(alpha: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """Whether a mixture draws from its softmax: with probability alpha, likewise."""
    takes_noise = philox.uniform(word) < 1 - alpha
    takes = philox.uniform(0xFFFFFFFF - word) < alpha
    return torch.where(alpha < 0.5, takes, ~takes_noise)


def _scores(z: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return z - torch.log(-torch.log1p(-philox.uniform(words)))


def _leading_group(z: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Z of the group that wins the race of groups, and -inf of the others."""
    rows, vocab_size = z.shape
    groups = words.shape[1]
    padded = torch.nn.functional.pad(z, (0, groups * RACE_GROUP - vocab_size), value=-math.inf)
    log_mass = padded.view(rows, groups, RACE_GROUP).logsumexp(2)
    winner = _first_argmax(_scores(log_mass, words))
    group = torch.arange(vocab_size, device=z.device) // RACE_GROUP
    return z.masked_fill(group != winner[:, None], -math.inf)


def _first_argmax(score: torch.Tensor) -> torch.Tensor:
    # torch.argmax leaves open which of equal maxima it returns; all backends take the first.
    vocab = score.shape[1]
    index = torch.arange(vocab, device=score.device)
    return torch.where(score == score.amax(1, keepdim=True), index, vocab - 1).amin(1)
