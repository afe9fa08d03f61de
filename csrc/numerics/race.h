// A draw from softmax(z) as a race: token v arrives at time E_v / exp(z_v), E_v exponential, and the first wins.
// In logarithms the winner has the largest score z_v - log E_v. And the decision to keep a token.
#pragma once

#include <cmath>

#include "numerics/half.h"
#include "numerics/host_device.h"

namespace ggm {

constexpr float kLargestUniform = 0x1.fffffep-1f;

// (word + 1/2) / 2^32 in float32: never 0, never 1, and near 0 as fine as 32 bits allow.
GGM_HD float open_uniform(uint32_t word) {
  const float u = (static_cast<float>(word) + 0.5f) * 0x1p-32f;
  return u < kLargestUniform ? u : kLargestUniform;
}

// log E for the exponential E = -log(1 - u).
GGM_HD float log_exponential(uint32_t word) { return logf(-log1pf(-open_uniform(word))); }

GGM_HD float race_score(float z, uint32_t word) { return z - log_exponential(word); }

// Logit relative to the largest of its row, over the temperature: at most 0, and 0 for the largest even where
// it is infinite. The inverse temperature is a finite normal float, so that nothing becomes NaN here.
template <class Real>
GGM_HD Real tempered(Real g, Real top, float inverse_temperature) {
  return g == top ? Real{} : (g - top) * inverse_temperature;
}

GGM_HD float float_of_int(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

// At most log2(u) * 2^23, but for a rounding that kMargin covers. E is at least u, u at least (word >> 1) / 2^31, and
// the bits of a float, read as an integer, are a chord below its logarithm.
template <class Word>
GGM_HD auto log2_uniform_bound(Word word) {
  constexpr float kExponentsOff = 0x1p23f * (127 + 31);
  return float_of_int(float_bits(float_of_int(word >> 1))) - kExponentsOff;
}

constexpr float kLog2E = 0x1.715476p0f * 0x1p23f;

// At least the score of a token, but for a rounding and up to a constant factor.
template <class Word, class Real>
GGM_HD auto winning_key(Real z, Word word) {
  return z * kLog2E - log2_uniform_bound(word);
}

// Never false for a token whose score reaches `best`, and seldom true for others: saves two logarithms a token.
// Word and Real are uint32_t and float, or many of them. A NaN (-inf against -inf) may not win.
template <class Word, class Real>
GGM_HD auto may_win(Real z, Word word, Real best) {
  constexpr float kMargin = 1024.0f;
  return log2_uniform_bound(word) < (z - best) * kLog2E + kMargin;
}

// exp(z), z <= 0, in units of 2^-40: integers, whose sums do not depend on their order. 2^22 of them fit.
GGM_HD uint64_t mass_units(float exp_z) { return static_cast<uint64_t>(exp_z * 0x1p40f); }

// z <= 0 as an integer that grows as z falls, in 31 bits.
GGM_HD uint32_t depth_bits(float z) { return float_bits(z) & 0x7FFFFFFFu; }
GGM_HD float depth_value(uint32_t bits) { return -float_of(bits); }

// Log-odds that the present token, of logit g, is signal: g + log((1 - eps) / eps) - log pi(token). Where noise cannot
// be, eps or pi being 0, signal is certain, whatever its weight; NaN for NaN.
GGM_HD float verdict(float g, float noise_rate, float log_noise_prob) {
  const float infinity = float_of(0x7F800000u);
  if (g != g) return g;
  if (noise_rate <= 0.0f || log_noise_prob == -infinity) return infinity;
  if (noise_rate >= 1.0f || g == -infinity) return -infinity;
  return g + (log1pf(-noise_rate) - logf(noise_rate)) - log_noise_prob;
}

GGM_HD float sigmoid(float f) { return 1.0f / (1.0f + expf(-f)); }

// True with probability sigmoid(f); NaN keeps. Compares the rarer outcome with a uniform near 0, where float32 has
// 32 random bits to give.
GGM_HD bool keeps_token(float f, uint32_t word) {
  if (f < 0.0f) return open_uniform(~word) < sigmoid(f);
  return !(open_uniform(word) < sigmoid(-f));
}

// Whether a mixture alpha softmax(z) + (1 - alpha) pi draws from the softmax: likewise with probability alpha.
GGM_HD bool takes_law(float alpha, uint32_t word) {
  if (alpha < 0.5f) return open_uniform(~word) < alpha;
  return !(open_uniform(word) < 1.0f - alpha);
}

// log(alpha exp(h) + (1 - alpha) exp(log_noise_prob)), exactly h for alpha 1; NaN for NaN.
GGM_HD float log_mixture(float h, float alpha, float log_noise_prob) {
  const float infinity = float_of(0x7F800000u);
  const float a = alpha <= 0.0f ? -infinity : h + logf(alpha);
  const float b = alpha >= 1.0f ? -infinity : log_noise_prob + log1pf(-alpha);
  if (h != h) return h;
  const float larger = a > b ? a : b, smaller = a > b ? b : a;
  return smaller == -infinity || larger == infinity ? larger : larger + log1pf(expf(smaller - larger));
}

// 1 / temperature as a finite normal float; 1 for temperature 0, which asks for the largest logit.
GGM_HD float inverse_of(float temperature) {
  if (temperature <= 0.0f) return 1.0f;
  const float inverse = static_cast<float>(1.0 / static_cast<double>(temperature));
  return inverse < 0x1p-126f ? 0x1p-126f : inverse > 3e38f ? 3e38f : inverse;
}

constexpr float kBinaryLog2E = 0x1.715476p0f, kLog2 = 0x1.62e43p-1f;

// To units of log 2, no more than a float can hold: a top less itself stays 0.
GGM_HD float binary_slope(float inverse_temperature) {
  return fminf(inverse_temperature * kBinaryLog2E, float_of(0x7F7FFFFFu));
}

}  // namespace ggm
