// The largest logits of a group and the sums of its exponentials, in vectors. Internal to each instruction set.
#pragma once

#include "cpu/race.h"

namespace ggm::cpu::GGM_ISA {
namespace {

struct GroupTop {
  float top;
  bool has_nan;
};

// The largest of logits that come batch by batch. Where kSeesNan is false a NaN is passed over, and the sums below find
// it.
template <bool kSeesNan>
class Largest {
 public:
  GGM_HD_MEMBER Largest() {
    for (Floats& top : tops_) top = Floats{} + minus_infinity();
  }

  template <class T>
  GGM_HD_MEMBER void take(const T* logits, int64_t count) {
    Floats g[8];
    load_batch(logits, count, g);
    for (int j = 0; j < 8; ++j) {
      if (kSeesNan) nan_ |= g[j] != g[j];
      tops_[j % kChains] = larger(g[j], tops_[j % kChains]);
    }
  }

  GGM_HD_MEMBER Floats of_lanes() const {
    Floats top = tops_[0];
    for (int chain = 1; chain < kChains; ++chain) top = larger(tops_[chain], top);
    return top;
  }

  GGM_HD_MEMBER GroupTop total() const { return {tree_largest(of_lanes()), kSeesNan && any(nan_)}; }

 private:
  static constexpr int kChains = 4;
  Floats tops_[kChains];
  Mask nan_ = {};
};

template <class T, bool kSeesNan>
GGM_HD GroupTop largest_of(const T* logits, int64_t count) {
  Largest<kSeesNan> largest;
  for (int64_t i = 0; i < count; i += kBatch) largest.take(logits + i, count - i);
  return largest.total();
}

// The largest logits of a batch's lanes: the first and the last of them. Not finite where one is not.
struct BatchTops {
  float most, least;
};

template <class T>
GGM_HD BatchTops tops_of_batch(const T* logits, int64_t count) {
  Largest<false> largest;
  largest.take(logits, count);
  return {tree_largest(largest.of_lanes()), -tree_largest(-largest.of_lanes())};
}

// The largest of kFew tokens at most.
template <class T>
GGM_HD GroupTop largest_of_few(const T* logits, int64_t count) {
  GroupTop largest = {minus_infinity(), false};
  for (int64_t i = 0; i < count; ++i) {
    const float g = to_float(logits[i]);
    if (g != g) largest.has_nan = true;
    if (g > largest.top) largest.top = g;
  }
  return largest;
}

// The second largest of some logits without NaN.
template <class T>
float second_largest_of(const T* logits, int64_t count) {
  Floats first = Floats{} + minus_infinity(), second = first;
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    for (int j = 0; j < 8; ++j) {
      second = larger(first < g[j] ? first : g[j], second);
      first = larger(g[j], first);
    }
  }
  int best = 0;
  for (int lane = 1; lane < kLanes; ++lane) best = first[lane] > first[best] ? lane : best;
  float largest = second[best];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane != best && first[lane] > largest) largest = first[lane];
  }
  return largest;
}

template <class T>
GGM_HD int64_t index_of(const Span<T>& group, float g) {
  int64_t i = 0;
  while (i < group.tokens - 1 && to_float(group.logits[i]) != g) ++i;
  return i;
}

// exp(z) and z exp(z), summed over a group, z relative to its top.
struct GroupSums {
  float mass, moment;
};

struct Chains {
  Floats mass[4] = {}, moment[4] = {};

  GGM_HD_MEMBER GroupSums total() const {
    return {tree_sum((mass[0] + mass[1]) + (mass[2] + mass[3])),
            tree_sum((moment[0] + moment[1]) + (moment[2] + moment[3])) * kLog2};
  }
};

// (g - top) * slope of logits. Where tops are moderate and the instruction set fuses, g * slope - base in one
// instruction: the top itself then gives not 0 but `at_top`, a rounding error that sums are corrected by.
template <bool kFused>
struct Exponents {
  Floats tops, slope, bases;
  float at_top;

  GGM_HD_MEMBER Exponents(float top, float slope_of_one)
      : tops(Floats{} + top), slope(Floats{} + slope_of_one), bases(Floats{} + top * slope_of_one) {
    at_top = kFused ? multiply_add(tops, slope, -bases)[0] : 0.0f;
  }
  GGM_HD_MEMBER Floats of(Floats g) const {
    return normal_exponent(kFused ? multiply_add(g, slope, -bases) : (g - tops) * slope);
  }
  // at_top is below 2^-14: its square counts for nothing.
  GGM_HD_MEMBER GroupSums corrected(GroupSums sums) const {
    if (!kFused) return sums;
    const float share = 1.0f - at_top * kLog2;
    return {sums.mass * share, (sums.moment - at_top * kLog2 * sums.mass) * share};
  }
};

#if defined(GGM_FUSES)
constexpr float kMostFused = 1024.0f;  // of |top * slope|
#else
constexpr float kMostFused = -1.0f;
#endif

// Nothing is asked of memory beforehand: it brings one row after the other by itself, at the rate of a bare sum.
template <class T, bool kMoment, bool kFused>
GGM_HD GroupSums sums_relative(const T* logits, int64_t count, const Exponents<kFused>& exponents) {
  Chains chains;
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    for (int j = 0; j < 8; ++j) {
      const Floats x = exponents.of(g[j]);
      if (kMoment) {
        const Floats y = exp2_for_sum(x);
        chains.mass[j % 4] += y;
        chains.moment[j % 4] = multiply_add(x, y, chains.moment[j % 4]);
      } else {
        chains.mass[j % 4] = add_exp2(chains.mass[j % 4], x);
      }
    }
  }
  return exponents.corrected(chains.total());
}

template <class T, bool kMoment>
GGM_HD GroupSums sums_of(const T* logits, int64_t count, float top, float inverse_temperature) {
  const float slope = binary_slope(inverse_temperature);
  if (fabsf(top * slope) <= kMostFused) {
    return sums_relative<T, kMoment>(logits, count, Exponents<true>(top, slope));
  }
  return sums_relative<T, kMoment>(logits, count, Exponents<false>(top, slope));
}

// The mass of what a threshold leaves of a group; the threshold is relative to the row's top.
template <class T>
float mass_above_threshold(const T* logits, int64_t count, const Law& law, const Tops& at) {
  Chains chains;
  const Floats tops = Floats{} + at.group, slope = Floats{} + binary_slope(law.inverse_temperature);
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    for (int j = 0; j < 8; ++j) {
      const Mask is_in = tempered(g[j], Floats{} + at.row, law.inverse_temperature) >= law.threshold;
      const Floats y = exp2_for_sum(normal_exponent((g[j] - tops) * slope));
      chains.mass[j % 4] += is_in ? y : Floats{};
    }
  }
  return chains.total().mass;
}

// How many logits are infinite: the mass of a group whose top is.
template <class T>
float count_infinite(const T* logits, int64_t count) {
  float infinite = 0.0f;
  for (int64_t i = 0; i < count; ++i) infinite += to_float(logits[i]) == -minus_infinity() ? 1.0f : 0.0f;
  return infinite;
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
