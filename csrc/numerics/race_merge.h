// What the threads of a race, each with some of a row's tokens, say together.
#pragma once

#include "numerics/race_state.h"

namespace ggm {

// The larger of two, and NaN where one is NaN: finds a NaN at no cost on the way to the maximum.
GGM_HD float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  return max_nan(a, b);
#else
  return a > b || a != a ? a : b;
#endif
}

// 2^x for sums: x <= 0, the absolute error at most 2^-22.
GGM_HD float exp2_for_sum(float x) {
#if defined(__CUDA_ARCH__)
  return fast_exp2(x);
#else
  return exp2f(x);
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
