"""A draw from softmax(z) as a race, inside Triton kernels: the mathematics of ``csrc/numerics/race.h``."""

from __future__ import annotations

import triton
import triton.language as tl

from ggm_kernels.triton.philox import words_at


@triton.jit
def tempered(g, top, inverse_temperature):
    """Logit relative to the largest, over the temperature: at most 0; 0 at the largest, be it infinite."""
    return tl.where(g == top, 0.0, (g - top) * inverse_temperature)


@triton.jit
def open_uniform(word):
    """(word + 1/2) / 2**32 in float32: never 0, never 1, and near 0 as fine as 32 bits allow."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)


@triton.jit
def log1p_minus(u):
    """log(1 - u) for u in [0, 1], with full relative precision near 0."""
    rest = 1.0 - u
    moved = 1.0 - rest  # what 1 - u took away, after rounding
    return tl.where(moved == 0.0, -u, tl.log(rest) * (u / tl.where(moved == 0.0, 1.0, moved)))


@triton.jit
def log_exponential(word):
    """Logarithm of the exponential E = -log(1 - u)."""
    return tl.log(-log1p_minus(open_uniform(word)))


@triton.jit
def sigmoid(f):
    """1 / (1 + exp(-f))."""
    return 1.0 / (1.0 + tl.exp(-f))


@triton.jit
def log_odds(g, rate, log_noise_prob):
    """Log-odds that a token of logit g is signal: certain where it cannot be noise, whatever g but NaN."""
    f = g + (log1p_minus(rate) - tl.log(rate)) - log_noise_prob
    f = tl.where((rate >= 1.0) | (g == float("-inf")), float("-inf"), f)
    f = tl.where((rate <= 0.0) | (log_noise_prob == float("-inf")), float("inf"), f)
    return tl.where(g == g, f, g)


@triton.jit
def keeps_token(f, word):
    """True with probability sigmoid(f); NaN keeps.

    Compares the rarer outcome with a uniform near 0, where float32 has 32 random bits to give.
    """
    keeps = open_uniform(word ^ 0xFFFFFFFF) < sigmoid(f)
    replaces = open_uniform(word) < sigmoid(-f)
    return tl.where(f < 0.0, keeps, replaces == 0)


@triton.jit
def takes_law(alpha, word):
    """Whether a mixture draws from its softmax: with probability alpha, likewise."""
    takes = open_uniform(word ^ 0xFFFFFFFF) < alpha
    takes_noise = open_uniform(word) < 1.0 - alpha
    return tl.where(alpha < 0.5, takes, takes_noise == 0)


@triton.jit
def log_mixture(h, alpha, log_noise_prob):
    """log(alpha exp(h) + (1 - alpha) exp(log_noise_prob)), exactly h for alpha 1; NaN for NaN."""
    law = tl.where(alpha > 0.0, h + tl.log(alpha), float("-inf"))
    noise = tl.where(alpha < 1.0, log_noise_prob + log1p_minus(alpha), float("-inf"))
    larger = tl.maximum(law, noise)
    smaller = tl.minimum(law, noise)
    is_one = (smaller == float("-inf")) | (larger == float("inf"))
    added = log1p_minus(-tl.exp(tl.where(is_one, 0.0, smaller - larger)))
    mixed = tl.where(is_one, larger, larger + added)
    return tl.where((h != h) | (alpha >= 1.0), h, mixed)


@triton.jit
def many_words(seed, step, sample_id, position, start, BLOCK: tl.constexpr, STREAM: tl.constexpr):
    """Words start .. start + BLOCK - 1 of a stream, uint32 [ROWS, BLOCK]; `start` [ROWS], multiples of 4."""
    quad = ((start // 4)[:, None] + tl.arange(0, BLOCK // 4)[None, :]).to(tl.uint32)
    w0, w1, w2, w3 = words_at(
        seed[:, None], step[:, None], sample_id[:, None], position[:, None], quad, STREAM
    )
    # One reshape of all four: a compiler changes layouts at every one.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [w0.shape[0], BLOCK])
