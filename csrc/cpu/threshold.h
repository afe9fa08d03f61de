// Top-k, top-p and min-p as one threshold of the tempered logits, by radix selection: no sort, and equal logits share
// one fate. Internal to each instruction set.
#pragma once

#include <cstdlib>

#include "cpu/group_sums.h"
#include "numerics/race_merge.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr uint32_t kDepthOfMinusInfinity = 0x7F800000u;

// Of one row: how deep every token lies below the largest (depth_bits), and its weight exp(z).
struct Depths {
  uint32_t* bits;
  float* weights;
  int64_t size;
  explicit Depths(int64_t tokens) : size((tokens + kBatch - 1) / kBatch * kBatch) {
    bits = static_cast<uint32_t*>(std::malloc(2 * sizeof(uint32_t) * (size + 1)));
    weights = reinterpret_cast<float*>(bits + size);
  }
  ~Depths() { std::free(bits); }
  Depths(const Depths&) = delete;
  Depths& operator=(const Depths&) = delete;
};

template <class T>
GGM_HD void fill(Depths& depths, const Span<T>& row, float top, float inverse_temperature) {
  for (int64_t i = 0; i < row.tokens; i += kBatch) {
    Floats z[8];
    load_batch(row.logits + i, row.tokens - i, z);
    for (int j = 0; j < 8; ++j) {
      z[j] = tempered(z[j], Floats{} + top, inverse_temperature);
      const Words bits = float_bits(z[j]) & 0x7FFFFFFFu;
      const Floats weights = exp_nonpositive(z[j]);
      memcpy(depths.bits + i + j * kLanes, &bits, sizeof bits);
      memcpy(depths.weights + i + j * kLanes, &weights, sizeof weights);
    }
  }
}

// What a token counts in a selection: itself, or its mass.
struct One {
  GGM_HD uint64_t of(const Depths&, int64_t) { return 1; }
};
struct Mass {
  GGM_HD uint64_t of(const Depths& depths, int64_t token) { return mass_units(depths.weights[token]); }
};

// The least depth down to which tokens no deeper than `limit` count `target` together; they must count that much.
template <class Count>
GGM_HD uint32_t select_depth(const Depths& depths, int64_t tokens, uint32_t limit, uint64_t target) {
  constexpr int kShifts[] = {20, 10, 0};
  constexpr uint32_t kDigits[] = {1u << 11, 1u << 10, 1u << 10};
  uint32_t prefix = 0, prefix_mask = 0;
  uint64_t above = 0;
  for (int pass = 0; pass < 3; ++pass) {
    uint64_t counts[1 << 11] = {};
    for (int64_t token = 0; token < tokens; ++token) {
      const uint32_t bits = depths.bits[token];
      if ((bits & prefix_mask) != prefix || bits > limit) continue;
      counts[bits >> kShifts[pass] & (kDigits[pass] - 1)] += Count::of(depths, token);
    }
    uint32_t digit = 0;
    while (digit + 1 < kDigits[pass] && above + counts[digit] < target) above += counts[digit++];
    prefix |= digit << kShifts[pass];
    prefix_mask |= (kDigits[pass] - 1) << kShifts[pass];
  }
  return prefix;
}

// The share top_p of the mass of all tokens no deeper than `limit`.
GGM_HD uint64_t nucleus_mass(const Depths& depths, int64_t tokens, uint32_t limit, double top_p) {
  uint64_t total = 0;
  for (int64_t token = 0; token < tokens; ++token) total += depths.bits[token] <= limit ? Mass::of(depths, token) : 0;
  return nucleus_target(top_p, total);
}

// The depth of the least token that top-k and top-p leave, in the order given.
GGM_HD uint32_t depth_limit(const Filters& filters, const Depths& depths, int64_t tokens) {
  uint32_t limit = kDepthOfMinusInfinity;
  for (int turn = 0; turn < 2; ++turn) {
    const bool by_mass = (turn == 0) == filters.top_p_first;
    if (!by_mass && filters.top_k < tokens) {
      // What top-p left may be fewer than k already: then all of it stays.
      const uint32_t kth = select_depth<One>(depths, tokens, limit, static_cast<uint64_t>(filters.top_k));
      limit = kth < limit ? kth : limit;
    }
    if (by_mass && filters.top_p < 1.0) {
      limit = select_depth<Mass>(depths, tokens, limit, nucleus_mass(depths, tokens, limit, filters.top_p));
    }
  }
  return limit;
}

// Of a row whose largest logit is `top`: the least z that stays.
template <class T>
float row_threshold(const Filters& filters, const Span<T>& row, float inverse_temperature, float top, Depths& depths) {
  uint32_t limit = kDepthOfMinusInfinity;
  if (filters.top_k < row.tokens || filters.top_p < 1.0) {
    fill(depths, row, top, inverse_temperature);
    limit = depth_limit(filters, depths, row.tokens);
  }
  const float threshold = depth_value(limit);
  return threshold > filters.log_min_p ? threshold : filters.log_min_p;
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
