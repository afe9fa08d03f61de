// A race in progress: who leads.
#pragma once

#include "numerics/race.h"

namespace ggm {

struct RaceState {
  float score;  // of the winner so far; -inf before there is one
  uint32_t winner;
};

GGM_HD RaceState race_start() { return {float_of(0xFF800000u), 0u}; }

// Of equal scores the first one's wins, in whatever order they come.
GGM_HD void enter(RaceState& state, float score, uint32_t index) {
  if (score > state.score || (score == state.score && index < state.winner)) state = {score, index};
}

}  // namespace ggm
