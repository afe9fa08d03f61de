// The race of two levels: first the groups of kRaceGroup consecutive tokens, then the tokens of the group that won.
//
// The definition, which all backends share. Group n holds the tokens [n kRaceGroup, (n + 1) kRaceGroup) of the whole
// vocabulary, whatever part of it a tile or a process holds. With z the tempered logit of a token relative to some top
// of the row and M the largest z of the group, its mass is S = sum exp(z - M) in float32, over the tokens that the
// filters left, and its score M + log S - log E. E is the exponential of the group's word, from a stream of its own.
// The group of the largest score wins, the first of equals; inside it the tokens race by race_score with their own
// words, relative to the group's largest logit. A vocabulary of one group has no race of groups: it is the race of
// tokens alone. So P(group) is its share of the mass, and P(token | group) the token's share of the group.
//
// The order in which a mass is summed is left open, and so is which M it is relative to where none of its digits are
// lost; both may depend on nothing but the group. The result must be within 2^-20 of the exact sum. Then two backends
// choose different groups where two of them finish within a few 2^-20 of each other, which is one row in some 10^5 of
// flat rows and fewer of others.
#pragma once

#include "numerics/race.h"

namespace ggm {

constexpr int64_t kRaceGroup = 1024;

// At least log(mass), by 0.06 at most, for a normal mass: the bits of a float, read as an integer, are a chord below
// its logarithm, by less than 0.0861 of base 2.
GGM_HD float log_bound(float mass) {
  constexpr float kExponentsOff = 0x1p23f * (127.0f - 0.0861f), kLog2OfBit = 0x1.62e43p-24f;
  return (float_of_int(float_bits(mass)) - kExponentsOff) * kLog2OfBit;
}

// A row after some of its groups. Scores and sums are relative to the largest logit so far and move along when that
// rises. Sums over groups are double: a million light tokens count beside a heavy one.
struct RowState {
  float top;     // largest logit; where nothing but sums needs it, one near it
  float second;  // the second largest
  uint32_t argmax;
  float score;      // of the leading group, relative to top; -inf before there is one
  uint32_t winner;  // token that won in the leading group
  float drawn;      // its logit
  float present;    // logit of the token that stands there, once it was met; -inf before
  float noise;      // logit of the token that a mixture's noise draws, likewise
  uint32_t has_nan;
  double law_mass;       // of exp(z): of the law that is drawn from, after the filters
  double tempered_mass;  // of exp(z) before the filters
  double moment;         // of z exp(z) before the filters
  double raw_mass;       // of exp(g - top): no temperature, no filter
};

GGM_HD RowState row_start() {
  const float infinity = float_of(0x7F800000u);
  return {-infinity, -infinity, 0u, -infinity, 0u, -infinity, -infinity, -infinity, 0u, 0.0, 0.0, 0.0, 0.0};
}

// Move to a higher top. What was -inf so far has no mass.
GGM_HD void rise_to(RowState& state, float top, float inverse_temperature) {
  if (!(top > state.top)) return;
  const float fall = tempered(state.top, top, inverse_temperature);
  const double share = exp(static_cast<double>(fall));
  state.score += fall;
  state.law_mass *= share;
  state.moment = share > 0.0 ? share * (state.moment + static_cast<double>(fall) * state.tempered_mass) : 0.0;
  state.tempered_mass *= share;
  state.raw_mass *= exp(static_cast<double>(state.top - top));
  state.top = top;
}

// Neither NaN nor nothing but -inf.
GGM_HD bool has_law(const RowState& state) { return state.has_nan == 0u && state.top > float_of(0xFF800000u); }

GGM_HD float log_sum_exp(const RowState& state) { return state.top + static_cast<float>(log(state.raw_mass)); }

// log softmax of a logit g, before temperature and filters. Less the top first: a log-sum-exp far from 0 is rounded.
GGM_HD float raw_log_prob(const RowState& state, float g) {
  return (g - state.top) - static_cast<float>(log(state.raw_mass));
}

// In nats, of the tempered law before the filters.
GGM_HD float entropy_of(const RowState& state) {
  const double entropy = log(state.tempered_mass) - state.moment / state.tempered_mass;
  return static_cast<float>(entropy > 0.0 ? entropy : 0.0);
}

// Largest minus second largest logit.
GGM_HD float margin_of(const RowState& state) { return state.second == state.top ? 0.0f : state.top - state.second; }

// log P of a token of logit g under the law that is drawn from; -inf where a filter left it out.
GGM_HD float law_log_prob(const RowState& state, float g, float inverse_temperature, float threshold) {
  const float z = tempered(g, state.top, inverse_temperature);
  return z >= threshold ? z - static_cast<float>(log(state.law_mass)) : float_of(0xFF800000u);
}

}  // namespace ggm
