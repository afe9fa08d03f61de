// Keys of a row's candidates, and what vectors do to many of them. Internal to each instruction set.
#pragma once

#include <cstdlib>
#include <cstring>

#include "cpu/simd_float.h"
#include "numerics/commit.h"

namespace ggm::cpu::GGM_ISA {
namespace {

typedef float HalfFloats __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(4 * kLanes)));
typedef int64_t WideInts __attribute__((vector_size(4 * kLanes)));

// A key for every position of a row, and room for those that are still in question. Behind each stands a vector of
// what is no candidate: loops need no remainder.
struct Keys {
  uint32_t* all;
  uint32_t* open;
  explicit Keys(int64_t length)
      : all(static_cast<uint32_t*>(std::malloc(sizeof(uint32_t) * static_cast<size_t>(2 * (length + kLanes))))),
        open(all + length + kLanes) {}
  ~Keys() { std::free(all); }
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;
};

GGM_HD void end_keys(uint32_t* keys, int64_t count) {
  const Words none = broadcast(kNoCandidate);
  memcpy(keys + count, &none, sizeof none);
}

GGM_HD Words load_keys(const uint32_t* keys) {
  Words words;
  memcpy(&words, keys, sizeof words);
  return words;
}

// Bits of the scores, of 0 where they are infinite or there is none.
GGM_HD Words finite_bits(Words keys) {
  const Words bits = key_bits(keys);
  return bits & (Words)((bits & 0x7FFFFFFFu) < 0x7F800000u);
}

inline Magnitudes largest_magnitudes(const uint32_t* keys, int64_t length) {
  Words gains = {}, costs = {};
  for (int64_t i = 0; i < length; i += kLanes) {
    const Words bits = finite_bits(load_keys(keys + i)), is_cost = (Words)((bits >> 31) != 0u);
    const Words gain = bits & ~is_cost, cost = bits & is_cost & 0x7FFFFFFFu;
    gains = gain > gains ? gain : gains;
    costs = cost > costs ? cost : costs;
  }
  Magnitudes largest = {0u, 0u};
  for (int lane = 0; lane < kLanes; ++lane) largest.take({gains[lane], costs[lane]});
  return largest;
}

GGM_HD int64_t count_up_to(const uint32_t* keys, int64_t count, uint32_t high) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; i += kLanes) total += __builtin_popcount(lane_bits(load_keys(keys + i) <= high));
  return total;
}

GGM_HD Doubles to_doubles(HalfFloats floats) {
#if defined(__AVX512F__)
  // The masked form: GCC 12 takes the unmasked one for a use of an uninitialised value.
  return (Doubles)_mm512_maskz_cvtps_pd(0xFF, (__m256)floats);
#else
  return __builtin_convertvector(floats, Doubles);
#endif
}

// cost_units of all keys that are `high` or less.
GGM_HD int64_t units_up_to(const uint32_t* keys, int64_t count, uint32_t high, const CostUnit& unit) {
  WideInts sums[2] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Words words = load_keys(keys + i), scores = finite_bits(words) & (Words)(words <= high);
    HalfFloats halves[2];
    memcpy(halves, &scores, sizeof halves);
    for (int half = 0; half < 2; ++half) {
      const Doubles units = -to_doubles(halves[half]) * unit.scale;
      sums[half] += __builtin_convertvector(units < unit.most ? units : unit.most + Doubles{}, WideInts);
    }
  }
  int64_t total = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) total += sums[0][lane] + sums[1][lane];
  return total;
}

// Moves the keys from `low` to `high`, no candidate's, to `to`, which may be the same place; how many they are.
inline int64_t keep_between(const uint32_t* keys, int64_t count, uint32_t low, uint32_t high, uint32_t* to) {
  int64_t kept = 0;
#if defined(__AVX512F__)
  for (int64_t i = 0; i < count; i += kLanes) {
    const Words words = load_keys(keys + i);
    const uint32_t chosen = lane_bits(words - low <= high - low);
    const __m512i first = _mm512_maskz_compress_epi32(static_cast<__mmask16>(chosen), (__m512i)words);
    memcpy(to + kept, &first, sizeof first);
    kept += __builtin_popcount(chosen);
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    to[kept] = key;
    kept += key - low <= high - low ? 1 : 0;
  }
#endif
  end_keys(to, kept);
  return kept;
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
