"""`glauber_step` and the losses by their mathematics alone: NumPy in float64, and nothing of the package.

Random words are Philox4x32-10 by its definition (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011),
at the coordinates that ggm_kernels/randomness.py lays out. What float32 may decide either way (a word next to a
probability, a mass next to top_p) is known as doubtful, and not judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

RACE, KEEP, GROUP = 1, 2, 10  # streams
RACE_GROUP = 1024  # tokens that race as one first
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


# Random words


def philox4x32(counter: np.ndarray, seed: int) -> np.ndarray:
    """Words [.., 4] of counters [.., 4], uint64 that hold 32 bits each."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


@dataclass(frozen=True)
class Place:
    """Coordinates of a row of a step."""

    seed: int
    step: int
    sample_id: int
    position: int

    def words(self, stream: int, blocks: int) -> np.ndarray:
        """The words of vocabulary blocks 0 .. blocks - 1, flat."""
        counter = np.empty((blocks, 4), dtype=np.uint64)
        counter[:, 0] = np.arange(blocks, dtype=np.uint64) | np.uint64(
            stream << 20 | self.sample_id >> 32 << 24
        )
        counter[:, 1] = self.position
        counter[:, 2] = self.sample_id & 0xFFFFFFFF
        counter[:, 3] = self.step
        return philox4x32(counter, self.seed).reshape(-1)


def uniform(word: np.ndarray) -> np.ndarray:
    """(word + 1/2) / 2**32 as float32 rounds it, at most 1 - 2**-24: this rounding is part of the noise."""
    u = (word.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return np.minimum(u, np.float32(1 - 2.0**-24)).astype(np.float64)


# A row of a step


@dataclass(frozen=True)
class Noise:
    """The law pi of noise tokens, which may include one beside the vocabulary (a mask), and how it is drawn."""

    probs: np.ndarray
    table: np.ndarray | None = (
        None  # Walker's: [.., 2], (threshold below which the column is taken, its alias)
    )
    mask: int | None = None

    def log_pi(self, token: int) -> float:
        return math.log(self.probs[token]) if self.probs[token] > 0 else -math.inf

    def token(self, column_word: int, accept_word: int) -> int:
        if self.mask is not None:
            return self.mask
        column = column_word * len(self.probs) >> 32
        if self.table is None or accept_word < self.table[column, 0]:
            return column
        return int(self.table[column, 1])


@dataclass
class Row:
    """One row: its logits and all that decides what becomes of its token. A new option is a field here.

    `g` is given as the call gets it [V]; soft cap and shift are made here.
    """

    g: np.ndarray
    present: int
    place: Place
    noise: Noise
    idle: bool = False  # frozen or without a position
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    filter_order: str = "k_p_min"
    noise_rate: float | None = None
    normalize: bool = False
    softcap: float | None = None
    logit_shift: float | None = None
    mixture: float | None = None
    precision: float = 1e-6  # what the logits are known to, relative to 1 + their size
    doubts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.softcap is not None:
            self.g = self.softcap * np.tanh(self.g / self.softcap)
        if self.logit_shift is not None and 0 <= self.present < len(self.g):
            self.g = self.g.copy()
            self.g[self.present] += self.logit_shift

    def doubt(self, cause: str, is_doubtful: bool) -> None:
        if is_doubtful:
            self.doubts.append(cause)

    @property
    def h(self) -> float:
        """Logit of the token that stands there; a token without one has probability 0."""
        return float(self.g[self.present]) if self.present < len(self.g) else -math.inf


def log_sum_exp(g: np.ndarray) -> float:
    top = g.max()
    return top + math.log(np.exp(g - top).sum()) if math.isfinite(top) else float(top)


def has_law(row: Row) -> bool:
    return not np.isnan(row.g).any() and row.g.max() > -math.inf


def law(row: Row) -> np.ndarray:
    """Logits of the law that is drawn from, up to a constant: 0 for the largest, -inf for what is left out."""
    g = row.g
    if row.temperature == 0:
        z = np.full(len(g), -math.inf)
        z[g.argmax()] = 0.0
        top_two = np.sort(g)[-2:]
        row.doubt("argmax", 0 < top_two[-1] - top_two[0] < row.precision * (1 + abs(top_two[-1])))
        return z
    top = g.max()
    with np.errstate(invalid="ignore"):
        z = np.where(g == top, 0.0, (g - top) / row.temperature)
    filters = {"k": _top_k, "p": _top_p, "min": _min_p}
    for keep in map(filters.get, row.filter_order.split("_")):
        z = np.where(keep(row, z), z, -math.inf)
    return z


def _near(a: float, b: float, row: Row) -> bool:
    return a != b and math.isfinite(a) and abs(a - b) < row.precision * (1 + abs(a) + 1 / row.temperature)


def _top_k(row: Row, z: np.ndarray) -> np.ndarray:
    if row.top_k is None or row.top_k >= len(z):
        return np.ones(len(z), dtype=bool)
    ordered = np.sort(z)[::-1]
    row.doubt("top_k", _near(ordered[row.top_k - 1], ordered[row.top_k], row))
    return z >= ordered[row.top_k - 1]


def _top_p(row: Row, z: np.ndarray) -> np.ndarray:
    if row.top_p is None or row.top_p >= 1:
        return np.ones(len(z), dtype=bool)
    ordered = np.sort(z)[::-1]
    probs = np.exp(ordered) / np.exp(ordered).sum()
    mass_above = np.cumsum(probs) - probs
    last = int((mass_above < row.top_p).sum()) - 1
    # A group of equal logits stays as a whole, so what counts is the mass above each group.
    first_of_group = np.r_[True, ordered[1:] != ordered[:-1]] & (probs > 0)
    error = 10 * row.precision * (1 + 1 / row.temperature)
    row.doubt("top_p", bool((abs(mass_above - row.top_p)[first_of_group][1:] < error).any()))
    beyond = ordered[last + 1 :][:1]
    row.doubt("top_p", any(_near(ordered[last], value, row) for value in beyond))
    return z >= ordered[last]


def _min_p(row: Row, z: np.ndarray) -> np.ndarray:
    if not row.min_p:
        return np.ones(len(z), dtype=bool)
    bound = math.log(row.min_p)
    below = z[(z < 0) & (abs(z - bound) < 1)]
    # min_p = 1 keeps what equals the largest: known, unless a soft cap rounds logits to the same number.
    is_exact = row.min_p == 1 and row.softcap is None
    row.doubt("min_p", not is_exact and any(_near(value, bound, row) for value in below))
    return z >= bound


def race(row: Row, z: np.ndarray, token: int) -> float:
    """By how much the score of `token` misses the best one, or that of its group: 0 for the winner.

    Token v arrives at time E_v / exp(z_v), a group at E / S, S the sum of exp(z) over it: of the first of them its
    first token is drawn.
    """
    words = row.place.words(RACE, -(-len(z) // 4))[: len(z)]
    if len(z) <= RACE_GROUP:
        return _miss(z, words, token)
    starts = np.arange(0, len(z), RACE_GROUP)
    with np.errstate(divide="ignore"):
        masses = np.log(np.add.reduceat(np.exp(z), starts))
    group = token // RACE_GROUP
    inside = slice(group * RACE_GROUP, (group + 1) * RACE_GROUP)
    group_words = row.place.words(GROUP, -(-len(starts) // 4))[: len(starts)]
    return max(_miss(masses, group_words, group), _miss(z[inside], words[inside], token - inside.start))


def _miss(z: np.ndarray, words: np.ndarray, index: int) -> float:
    scores = z - np.log(-np.log1p(-uniform(words)))
    best = int(scores.argmax())
    if index == best:
        return 0.0
    sizes = 1 + abs(z[best]) + (abs(z[index]) if math.isfinite(z[index]) else 0.0)
    return (scores[best] - scores[index]) / sizes


def log_odds(row: Row) -> float:
    """Log-odds that the present token is signal: certain where it cannot be noise."""
    log_pi = row.noise.log_pi(row.present)
    if row.noise_rate <= 0 or log_pi == -math.inf:
        return math.inf
    g = row.h
    if row.normalize:
        g = g - log_sum_exp(row.g)
    g = mixed(row, g, row.present)
    if row.noise_rate >= 1 or g == -math.inf:
        return -math.inf
    return g + math.log1p(-row.noise_rate) - math.log(row.noise_rate) - log_pi


def mixed(row: Row, log_p: float, token: int) -> float:
    """log(alpha p + (1 - alpha) pi) of a token with log-probability log_p."""
    if row.mixture is None or row.mixture >= 1:
        return log_p
    of_law = math.log(row.mixture) + log_p if row.mixture > 0 else -math.inf
    return float(np.logaddexp(of_law, math.log1p(-row.mixture) + row.noise.log_pi(token)))


def sigmoid(f: float) -> float:
    return 1 / (1 + math.exp(-f)) if f >= 0 else math.exp(max(f, -740)) / (1 + math.exp(max(f, -740)))


def keeps(row: Row) -> bool:
    """Whether the present token is kept."""
    if row.noise_rate is None:
        return False
    f = log_odds(row)
    if math.isnan(f):
        return True
    size = abs(row.h) if math.isfinite(row.h) else 0.0
    error = 10 * row.precision * (1 + size) + 1e-6 * (1 + abs(f)) if math.isfinite(f) else 0
    return _happens(row, "keep", f < 0, sigmoid(-abs(f)), row.place.words(KEEP, 1)[:1], error)


def noise_token(row: Row) -> int | None:
    """The token that a mixture draws from pi, None where it draws from the softmax."""
    if row.mixture is None:
        return None
    _, side, column, accept = row.place.words(KEEP, 1)
    rarer = min(row.mixture, 1 - row.mixture)
    takes_law = _happens(row, "mixture", row.mixture < 0.5, rarer, np.array([side]), 1e-6)
    return None if takes_law else row.noise.token(int(column), int(accept))


def _happens(row: Row, cause: str, is_rarer: bool, rarer: float, word: np.ndarray, error: float) -> bool:
    """Decide between two outcomes: the rarer one is held against a uniform near 0."""
    u = float(uniform(np.uint64(0xFFFFFFFF) - word if is_rarer else word)[0])
    row.doubt(cause, abs(u - rarer) <= error * rarer)
    return (u < rarer) == is_rarer


# By-products: of a row that has a law and is not frozen, and the token drawn, or None where it was kept. One line each.


def _log_prob(row: Row, drawn: int | None) -> float:
    if drawn is None:
        return math.nan
    z = law(row)
    return mixed(row, z[drawn] - log_sum_exp(z) if drawn < len(z) else -math.inf, drawn)


def _raw_log_prob(row: Row, drawn: int | None) -> float:
    if drawn is None:
        return math.nan
    return row.g[drawn] - log_sum_exp(row.g) if drawn < len(row.g) else -math.inf


def _entropy(row: Row, drawn: int | None) -> float:
    if row.temperature == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        z = np.where(row.g == row.g.max(), 0.0, (row.g - row.g.max()) / row.temperature)
    log_p = z - log_sum_exp(z)
    return -float(sum(p * log for log in log_p if (p := math.exp(log)) > 0))


def _margin(row: Row, drawn: int | None) -> float:
    second, first = np.sort(np.r_[row.g, -math.inf])[-2:]
    return 0.0 if first == second else first - second


BY_PRODUCTS = {
    "log_sum_exp": lambda row, drawn: log_sum_exp(row.g),
    "log_prob": _log_prob,
    "keep_prob": lambda row, drawn: sigmoid(log_odds(row)),
    "raw_log_prob": _raw_log_prob,
    "entropy": _entropy,
    "margin": _margin,
    "argmax": lambda row, drawn: int(row.g.argmax()),
}


# Losses


def losses(f: np.ndarray, signal: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Terms of the loss and their derivatives for logits f [N, C]; a weight of 0 switches its term off."""
    of_minus_f, of_f = np.logaddexp(0, -f), np.logaddexp(0, f)
    with np.errstate(invalid="ignore"):
        terms = np.where(signal == 0, 0, signal * of_minus_f) + np.where(noise == 0, 0, noise * of_f)
    of_signal = 1 / (1 + np.exp(np.clip(f, -700, 700)))  # sigmoid(-f)
    return terms, noise * (1 - of_signal) - signal * of_signal


def cross_entropy(
    products: np.ndarray,
    target: np.ndarray,
    scale: np.ndarray,
    *,
    softcap: float | None = None,
    shift: np.ndarray | None = None,
    shifted: np.ndarray | None = None,
    z_loss: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and log-sum-exp of every row, and the gradients of both by the products [N, V].

    A row of scale 0 has loss 0, and so has its gradient.
    """
    rows = np.arange(len(products))
    z, slope = products, np.ones_like(products)
    if softcap is not None:
        tanh = np.tanh(products / softcap)
        z, slope = softcap * tanh, 1 - tanh**2
    if shift is not None:
        z = z.copy()
        z[rows, shifted] += shift
    top = z.max(axis=1)
    log_sum_exp = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    share = np.exp(z - log_sum_exp[:, None])
    safe = np.where(scale == 0, 0, target)
    loss = scale * (log_sum_exp - z[rows, safe] + z_loss * log_sum_exp**2)
    one_hot = np.zeros_like(z)
    one_hot[rows, safe] = 1
    slopes = scale[:, None] * ((1 + 2 * z_loss * log_sum_exp[:, None]) * share - one_hot)
    return loss, log_sum_exp, slopes * slope, share * slope


def with_shared(candidates: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Candidates [N, C] and, in every row, those that all rows share [S]: [N, C + S]."""
    return np.hstack([candidates, np.broadcast_to(shared, (len(candidates), len(shared)))])
