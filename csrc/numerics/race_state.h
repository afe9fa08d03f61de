// A race in progress: what is known of one row after some of its tokens. Everything is relative to the largest
// logit so far and moves along when that rises, so one pass over the logits is enough.
#pragma once

#include "numerics/race.h"

namespace ggm {

struct RaceState {
  float top;         // largest logit
  float score;       // of the winner, relative to top; -inf before there is one
  float z;           // tempered logit of the winner, likewise
  uint32_t winner;
  float raw_sum;     // of exp(g - top): no temperature, no filter
  float law_sum;     // of exp(z): of the law that is drawn from
  float present;     // logit of the present token, once it was met
  uint32_t has_nan;
};

GGM_HD RaceState race_start() {
  const float infinity = float_of(0x7F800000u), nan = float_of(0x7FC00000u);
  return {-infinity, -infinity, -infinity, 0u, 0.0f, 0.0f, nan, 0u};
}

// Move to a higher top. Where both are -inf nothing moves.
GGM_HD void rise_to(RaceState& state, float top, float inverse_temperature) {
  if (!(top > state.top)) return;
  const float fall = tempered(state.top, top, inverse_temperature);
  state.score += fall;
  state.z += fall;
  state.law_sum *= expf(fall);
  state.raw_sum *= expf(state.top - top);
  state.top = top;
}

// Of equal scores the first token's wins, in whatever order they come.
GGM_HD void enter(RaceState& state, float z, float score, uint32_t token) {
  if (score > state.score || (score == state.score && token < state.winner)) {
    state.score = score;
    state.z = z;
    state.winner = token;
  }
}

// Neither NaN nor nothing but -inf.
GGM_HD bool has_law(const RaceState& state) { return state.has_nan == 0u && state.top > float_of(0xFF800000u); }

GGM_HD float log_sum_exp(const RaceState& state) {
  return state.has_nan != 0u ? float_of(0x7FC00000u) : state.top + logf(state.raw_sum);
}

GGM_HD float winner_log_prob(const RaceState& state) { return state.z - logf(state.law_sum); }

}  // namespace ggm
