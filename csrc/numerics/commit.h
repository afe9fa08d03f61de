// Which positions of a row commit accepts. Candidates stand in one order, by score from the largest on and by position
// where scores are equal, and what is accepted is a prefix of it: as long as it has room for one more (is_open).
// Selection finds where it ends without sorting. Costs are summed as integers, so that any order of additions
// gives the same sum.
#pragma once

#include "numerics/half.h"
#include "numerics/host_device.h"

namespace ggm {

// Keys ascend where scores descend. Scores are not NaN; -0 is 0.
GGM_HD uint32_t score_key(float score) {
  const uint32_t bits = score == 0.0f ? 0u : float_bits(score);
  return bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFu;
}
template <class Word>
GGM_HD Word key_bits(Word key) {
  return key ^ (((key >> 31) - 1u) & 0x7FFFFFFFu);
}
GGM_HD float key_score(uint32_t key) { return float_of(key_bits(key)); }

GGM_HD bool is_finite(float value) { return (float_bits(value) & 0x7F800000u) != 0x7F800000u; }

// A key that no score has (NaN with its sign), of what is no candidate. The last of all.
constexpr uint32_t kNoCandidate = 0xFFFFFFFFu;

// NaN, and what is below the threshold, is no candidate; a threshold that is NaN leaves none.
GGM_HD uint32_t candidate_key(float score, bool is_eligible, float threshold) {
  return is_eligible && score >= threshold ? score_key(score) : kNoCandidate;
}

// Bits of the largest finite gain (a score above 0) and of the largest finite cost (one below 0, without its sign).
struct Magnitudes {
  uint32_t gain, cost;
  GGM_HD_MEMBER void take(const Magnitudes& other) {
    gain = other.gain > gain ? other.gain : gain;
    cost = other.cost > cost ? other.cost : cost;
  }
};

GGM_HD Magnitudes magnitudes_of(uint32_t key) {
  const uint32_t bits = float_bits(key_score(key)), magnitude = bits & 0x7FFFFFFFu;
  if (magnitude >= 0x7F800000u) return {0u, 0u};
  return bits >> 31 != 0 ? Magnitudes{0u, magnitude} : Magnitudes{magnitude, 0u};
}

GGM_HD double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

GGM_HD int bit_length(uint64_t value) {
  int bits = 0;
  for (; value != 0; value >>= 1) ++bits;
  return bits;
}

// Units per nat, a power of two, and the largest cost in units, which larger ones count as: no sum reaches 2^62.
struct CostUnit {
  double scale, most;
};

// The largest magnitude that the unit must have room for, as bits: behind a cost beyond the budget and all gains nothing
// is open, and how far beyond it is makes no difference.
GGM_HD uint32_t counted_bits(const Magnitudes& largest, float budget, int64_t length) {
  const double gains = static_cast<double>(float_of(largest.gain)) * static_cast<double>(length);
  const double reach = gains + (budget > 0.0f ? static_cast<double>(budget) : 0.0);
  const bool is_bounded = reach < 0x1p127;
  const uint32_t of_reach = is_bounded ? float_bits(static_cast<float>(reach)) | 0x7FFFFFu : 0x7F7FFFFFu;
  const uint32_t cost = largest.cost < of_reach ? largest.cost : of_reach;
  return largest.gain > cost ? largest.gain : cost;
}

GGM_HD CostUnit cost_unit(const Magnitudes& largest, float budget, int64_t length) {
  const int field = static_cast<int>(counted_bits(largest, budget, length) >> 23);
  const int exponent = (field > 0 ? field : 1) - 127;  // what counts is below 2^(exponent + 1)
  const int bits = bit_length(static_cast<uint64_t>(length));
  return {power_of_two(61 - exponent - bits), power_of_two(62 - bits)};
}

// Cost, -score, in units: exact but for its bits below one unit. Infinite costs count nothing here: a score of inf is
// certain, and behind one of -inf, which is the last, nothing is open.
GGM_HD int64_t cost_units(float score, const CostUnit& unit) {
  if (!is_finite(score)) return 0;
  const double units = -static_cast<double>(score) * unit.scale;
  return static_cast<int64_t>(units < unit.most ? units : unit.most);
}

// Largest sum that is within the budget; a negative one, or NaN, is below that of no candidate at all.
GGM_HD int64_t budget_units(float budget, const CostUnit& unit) {
  if (!(budget >= 0.0f)) return -1;
  const double units = static_cast<double>(budget) * unit.scale;
  return units < 0x1p62 ? static_cast<int64_t>(units) : int64_t{1} << 62;
}

struct Limits {
  int64_t count;         // that many, at most
  int64_t budget_units;  // of the costs of those before; unused without a budget
  bool has_budget, is_unbounded;  // unbounded: an infinite budget
};

// Candidates before a place in the order, and their cost.
struct Prefix {
  int64_t count, units;
};

// Whether a candidate after the prefix is accepted. Once false, it is false for all longer ones: costs ascend.
GGM_HD bool is_open(const Limits& limits, const Prefix& before) {
  return before.count < limits.count && (!limits.has_budget || before.units <= limits.budget_units);
}

// How many of equal scores are accepted, none of which stands in the prefix; it is open.
GGM_HD int64_t equals_accepted(const Limits& limits, const Prefix& before, float score, int64_t units) {
  const int64_t by_count = limits.count - before.count;
  if (!limits.has_budget || limits.is_unbounded) return by_count;
  if (!is_finite(score) && score < 0.0f) return 1;
  if (units <= 0) return by_count;
  const int64_t by_budget = (limits.budget_units - before.units) / units + 1;
  return by_budget < by_count ? by_budget : by_count;
}

}  // namespace ggm
