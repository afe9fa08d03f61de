// The largest logits of a group and the sums of its exponentials, in vectors. Internal to each instruction set.
#pragma once

#include "cpu/race.h"

namespace ggm::cpu::GGM_ISA {
namespace {

struct GroupTop {
  float top;
  bool has_nan;
};

// Largest of some logits. Where kSeesNan is false a NaN is passed over, and the sums below find it.
template <class T, bool kSeesNan>
GGM_HD GroupTop largest_of(const T* logits, int64_t count) {
  Floats tops[8];
  Mask nan = {};
  for (Floats& top : tops) top = Floats{} + minus_infinity();
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    for (int j = 0; j < 8; ++j) {
      if (kSeesNan) nan |= g[j] != g[j];
      tops[j] = larger(g[j], tops[j]);
    }
  }
  for (int distance = 4; distance > 0; distance /= 2) {
    for (int j = 0; j < distance; ++j) tops[j] = larger(tops[j + distance], tops[j]);
  }
  return {tree_largest(tops[0]), kSeesNan && any(nan)};
}

// The same of kFew tokens at most.
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
GGM_HD int64_t index_of(const T* logits, float g) {
  int64_t i = 0;
  while (to_float(logits[i]) != g) ++i;
  return i;
}

constexpr float kBinaryLog2E = 0x1.715476p0f, kLog2 = 0x1.62e43p-1f;

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

// Asks for the cache lines of row[begin .. end), into the first level: they are next.
template <class T>
GGM_HD void ask_for(const T* row, int64_t begin, int64_t end) {
  constexpr int64_t step = kLineBytes / sizeof(T);
  for (int64_t i = begin; i < end; i += step) __builtin_prefetch(row + i, 0, 3);
}

// On the way it asks for logits further on: they come from memory while these are computed.
template <class T, bool kMoment>
GGM_HD GroupSums sums_of(const T* logits, int64_t count, float top, float inverse_temperature) {
  Chains chains;
  const Floats tops = Floats{} + top, slope = Floats{} + inverse_temperature * kBinaryLog2E;
  const T* const ahead = logits + 2 * kRaceGroup;  // one group ahead comes too late
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    ask_for(ahead, i, i + kBatch);
    for (int j = 0; j < 8; ++j) {
      const Floats x = (g[j] - tops) * slope, y = exp2_for_sum(x);
      chains.mass[j % 4] += y;
      if (kMoment) chains.moment[j % 4] = multiply_add(larger(x, Floats{} - 125.0f), y, chains.moment[j % 4]);
    }
  }
  return chains.total();
}

// The mass of what a cut leaves of a group; the cut is relative to the row's top.
template <class T>
float mass_above_cut(const T* logits, int64_t count, const Law& law, const Tops& at) {
  Chains chains;
  const Floats tops = Floats{} + at.group, slope = Floats{} + law.inverse_temperature * kBinaryLog2E;
  for (int64_t i = 0; i < count; i += kBatch) {
    Floats g[8];
    load_batch(logits + i, count - i, g);
    for (int j = 0; j < 8; ++j) {
      const Mask is_in = tempered(g[j], Floats{} + at.row, law.inverse_temperature) >= law.cut;
      const Floats y = exp2_for_sum((g[j] - tops) * slope);
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
