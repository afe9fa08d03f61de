// What the threads of a race, each with some of a row's tokens, say together.
#pragma once

#include "numerics/race_state.h"

namespace ggm {

// The state of the tokens of both. The order of the two is of no account.
GGM_HD RaceState merge(RaceState a, RaceState b, float inverse_temperature) {
  rise_to(a, b.top, inverse_temperature);
  rise_to(b, a.top, inverse_temperature);
  enter(a, b.z, b.score, b.winner);
  a.raw_sum += b.raw_sum;
  a.law_sum += b.law_sum;
  a.present = a.present == a.present ? a.present : b.present;
  a.has_nan |= b.has_nan;
  return a;
}

// The larger of two, and NaN where one is NaN: finds a NaN at no cost on the way to the maximum.
GGM_HD float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  return max_nan(a, b);
#else
  return a > b || a != a ? a : b;
#endif
}

// may_win in fewer instructions, for tokens of one top and one best score: the same comparison with everything known
// beforehand in `offset`. Where rounding makes a difference may_win's margin is ample, as no winner's score is far
// below 0. An infinite top stands as the largest float, so that equal logits are no NaN.
struct Gate {
  float top, slope, offset;
};

// Of may_win: logits to units of log2_uniform_bound, no more than a float can hold.
GGM_HD float gate_slope(float inverse_temperature) {
  const float slope = inverse_temperature * kLog2E, largest = float_of(0x7F7FFFFFu);
  return slope < largest ? slope : largest;
}

GGM_HD Gate gate_of(float top, float slope, float best) {
  constexpr float kMargin = 1024.0f, kExponents = 0x1p23f * (127 + 31);
  return {fminf(top, float_of(0x7F7FFFFFu)), slope, kMargin + kExponents - best * kLog2E};
}

// Never false for a token that has logit g or less, and the word or a larger one, and beats the best score.
GGM_HD bool passes(const Gate& gate, float g, uint32_t word) {
  return float_of_int(float_bits(float_of_int(word >> 1))) < (g - gate.top) * gate.slope + gate.offset;
}

// Whether the race of a row with a law was run and has been won.
GGM_HD bool has_winner(const RaceState& state) { return has_law(state) && state.score > float_of(0xFF800000u); }

// exp(z) for sums: z <= 0, the absolute error at most 2^-22.
GGM_HD float exp_for_sum(float z) {
#if defined(__CUDA_ARCH__)
  return __expf(z);
#else
  return expf(z);
#endif
}

// Adds to a 64-bit sum in two words, of which an atomic addition sees one at a time: the carry of the low word.
GGM_HD uint32_t carry_of(uint32_t old_low, uint32_t added_low) { return old_low > ~added_low ? 1u : 0u; }

// The share top_p of `total` in whole units, at least one.
GGM_HD uint64_t nucleus_target(double top_p, uint64_t total) {
  const uint64_t target = static_cast<uint64_t>(ceil(top_p * static_cast<double>(total)));
  return target == 0 ? 1 : target > total ? total : target;
}

}  // namespace ggm
