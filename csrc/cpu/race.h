// The race of the tokens of one group, in vectors. Internal to each instruction set.
#pragma once

#include <cstring>

#include "cpu/simd_float.h"
#include "glauber_row.h"
#include "numerics/race_state.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kBatch = 8 * kLanes;  // tokens whose words two chains of Philox give
constexpr int64_t kFew = 16;            // tokens that race one by one sooner than as a batch of vectors

GGM_HD float minus_infinity() { return float_of(0xFF800000u); }

// Logits of the tokens from token_begin (a multiple of 4) on.
template <class T>
struct Span {
  const T* logits;
  int64_t token_begin, tokens;
};

struct RaceKeys {
  VectorKeys of_many;
  PhiloxKeys<uint32_t> of_one;
};

GGM_HD RaceKeys race_keys(uint64_t seed) { return {vector_keys(seed), philox_keys(seed)}; }

// A vector per kLanes tokens of a batch, or -inf past `count`.
template <class T>
GGM_HD void load_batch(const T* logits, int64_t count, Floats (&g)[8]) {
  T padded[kBatch];
  if (count < kBatch) {
    T filling;
    round_to(minus_infinity(), filling);
    for (T& token : padded) token = filling;
    memcpy(padded, logits, sizeof(T) * static_cast<size_t>(count));
    logits = padded;
  }
  for (int j = 0; j < 8; ++j) g[j] = load(logits + j * kLanes);
}

// Words of the kBatch tokens from vocabulary block `first_block` on, in order. The lanes of a Philox call take such
// blocks that transposing fours puts the words of neighbours side by side.
struct BatchWords {
  Words words[8];
};

struct RaceCounter {
  Words blocks;  // of the lanes, relative to the first
  SplitWords c1, c2, c3;
};

GGM_HD RaceCounter race_counter(const Race& race) {
  Words blocks;
  for (int lane = 0; lane < kLanes; ++lane) blocks[lane] = static_cast<uint32_t>(lane % 4 * (kLanes / 4) + lane / 4);
  return {blocks | counter_word0(kRaceStream, race.sample_id, 0), split(broadcast(race.position)),
          split(broadcast(counter_word2(race.sample_id))), split(broadcast(race.step))};
}

GGM_HD BatchWords batch_words(const RaceCounter& counter, uint32_t first_block, const VectorKeys& keys) {
  const Words blocks = counter.blocks + first_block;
  const TwoSplit c0 = {split(blocks), split(blocks + kLanes)};
  const PhiloxBlock<TwoSplit> block = philox4x32(c0, TwoSplit{counter.c1, counter.c1}, TwoSplit{counter.c2, counter.c2},
                                                 TwoSplit{counter.c3, counter.c3}, keys);
  BatchWords batch = {{join(block.w0.first), join(block.w1.first), join(block.w2.first), join(block.w3.first),
                       join(block.w0.second), join(block.w1.second), join(block.w2.second), join(block.w3.second)}};
  transpose_fours(batch.words[0], batch.words[1], batch.words[2], batch.words[3]);
  transpose_fours(batch.words[4], batch.words[5], batch.words[6], batch.words[7]);
  return batch;
}

// A batch of tokens on the way into the race, lane by lane.
struct Entrants {
  float z[kBatch];
  uint32_t words[kBatch];
  int64_t first_token;

  __attribute__((always_inline)) void enter_lane(int64_t lane, RaceState& state) const {
    enter(state, race_score(z[lane], words[lane]), static_cast<uint32_t>(first_token + lane));
  }
};

// The lane that seems to win: who enters it first is spared most of the others.
GGM_HD int64_t likely_winner(const Floats (&z)[8], const BatchWords& batch) {
  Floats keys[8];
  for (int j = 0; j < 8; ++j) keys[j] = winning_key(z[j], batch.words[j]);
  Floats largest = keys[0];
  for (int j = 1; j < 8; ++j) largest = larger(keys[j], largest);
  const Floats best = Floats{} + largest_lane(largest);
  for (int j = 0; j < 8; ++j) {
    const uint32_t lanes = lane_bits(keys[j] == best);
    if (lanes != 0) return j * kLanes + __builtin_ctz(lanes);
  }
  return 0;
}

// The exact scores of those in a batch that may win.
__attribute__((noinline)) void enter_batch(const Floats (&z)[8], const BatchWords& batch, int64_t first_token,
                                           RaceState& state) {
  Entrants entrants;
  memcpy(entrants.z, z, sizeof entrants.z);
  memcpy(entrants.words, batch.words, sizeof entrants.words);
  entrants.first_token = first_token;
  if (!(state.score > minus_infinity())) entrants.enter_lane(likely_winner(z, batch), state);
  const Floats best = Floats{} + state.score;
  for (int j = 0; j < 8; ++j) {
    for (uint32_t lanes = lane_bits(may_win(z[j], batch.words[j], best)); lanes != 0; lanes &= lanes - 1) {
      const int64_t lane = j * kLanes + __builtin_ctz(lanes);
      if (may_win(entrants.z[lane], entrants.words[lane], state.score)) entrants.enter_lane(lane, state);
    }
  }
}

// The tokens of one group on their way to a winner: z relative to the group's largest logit, the threshold to the row's.
struct Tops {
  float group, row;
};

// A group of kFew tokens at most.
template <class T>
GGM_HD void race_few(const Span<T>& group, const Race& race, const PhiloxKeys<uint32_t>& keys, const Law& law,
                     const Tops& tops, RaceState& state) {
  for (int64_t i = 0; i < group.tokens; i += 4) {
    const uint32_t token = static_cast<uint32_t>(group.token_begin + i);
    const PhiloxBlock<uint32_t> block = words_of(race, kRaceStream, token / 4, keys);
    const uint32_t words[4] = {block.w0, block.w1, block.w2, block.w3};
    for (int j = 0; j < 4 && i + j < group.tokens; ++j) {
      const float g = to_float(group.logits[i + j]), z = tempered(g, tops.group, law.inverse_temperature);
      if (law.filtered && !(tempered(g, tops.row, law.inverse_temperature) >= law.threshold)) continue;
      if (may_win(z, words[j], state.score)) enter(state, race_score(z, words[j]), token + j);
    }
  }
}

template <class T, bool kFiltered>
GGM_HD void race_many(const Span<T>& group, const Race& race, const VectorKeys& keys, const Law& law,
                      const Tops& tops, RaceState& state) {
  const RaceCounter counter = race_counter(race);
  const Floats top = Floats{} + tops.group, row_top = Floats{} + tops.row, threshold = Floats{} + law.threshold;
  for (int64_t i = 0; i < group.tokens; i += kBatch) {
    Floats z[8];
    load_batch(group.logits + i, group.tokens - i, z);
    const int64_t first_token = group.token_begin + i;
    const BatchWords words = batch_words(counter, static_cast<uint32_t>(first_token / 4), keys);
    const Floats best = Floats{} + state.score;
    Mask some = {};
    for (int j = 0; j < 8; ++j) {
      Mask is_in = {};
      if (kFiltered) is_in = tempered(z[j], row_top, law.inverse_temperature) >= threshold;
      z[j] = tempered(z[j], top, law.inverse_temperature);
      if (kFiltered) z[j] = is_in ? z[j] : Floats{} + minus_infinity();
      some |= may_win(z[j], words.words[j], best);
    }
    if (any(some)) enter_batch(z, words, first_token, state);
  }
}

// The token that wins in a group, whose largest logit passes the filters.
template <class T>
GGM_HD uint32_t race_tokens(const Span<T>& group, const Race& race, const RaceKeys& keys, const Law& law,
                            const Tops& tops) {
  RaceState state = race_start();
  if (group.tokens <= kFew) {
    race_few(group, race, keys.of_one, law, tops, state);
  } else if (law.filtered) {
    race_many<T, true>(group, race, keys.of_many, law, tops, state);
  } else {
    race_many<T, false>(group, race, keys.of_many, law, tops, state);
  }
  return state.winner;
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
