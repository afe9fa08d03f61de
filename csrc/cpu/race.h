// The race over part of a row, in vectors. Internal to each instruction set.
#pragma once

#include <cstring>

#include "cpu/simd_float.h"
#include "kernels.h"
#include "numerics/counter.h"
#include "numerics/race_state.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kGroup = 8 * kLanes;  // tokens whose words two chains of Philox give
constexpr int64_t kChunk = 4096;        // tokens that stay in cache between the maximum and the race
constexpr int64_t kFew = 16;            // tokens that race one by one sooner than as a group of vectors

GGM_HD float minus_infinity() { return float_of(0xFF800000u); }

// Coordinates of a row's noise.
struct Race {
  uint64_t sample_id;
  uint32_t position, step;
};

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

// What a race is run on, beside its logits.
struct Law {
  float inverse_temperature;
  float cut;  // of z: less has no chance; -inf for none
  bool greedy;
  bool raw_sum, law_sum;  // whether they are asked for
};

GGM_HD Law law_of(const GlauberArgs& args, float cut) {
  return {args.inverse_temperature, cut, args.greedy, args.normalize || args.log_sum_exp != nullptr,
          args.log_prob != nullptr && !args.greedy};
}

// Four words of a stream of the row.
GGM_HD PhiloxBlock<uint32_t> words_of(const Race& race, uint32_t stream, uint32_t vocab_block,
                                      const PhiloxKeys<uint32_t>& keys) {
  return philox4x32(counter_word0(stream, race.sample_id, vocab_block), race.position, counter_word2(race.sample_id),
                    race.step, keys);
}

GGM_HD uint32_t keep_word(const Race& race, uint64_t seed) {
  return words_of(race, kKeepStream, 0, philox_keys(seed)).w0;
}

// A vector per kLanes tokens of a group, or -inf past `count`.
template <class T>
GGM_HD void load_group(const T* logits, int64_t count, Floats (&g)[8]) {
  T padded[kGroup];
  if (count < kGroup) {
    T filling;
    round_to(minus_infinity(), filling);
    for (T& token : padded) token = filling;
    memcpy(padded, logits, sizeof(T) * static_cast<size_t>(count));
    logits = padded;
  }
  for (int j = 0; j < 8; ++j) g[j] = load(logits + j * kLanes);
}

// Words of the kGroup tokens from vocabulary block `first_block` on, in order. The lanes of a Philox call take such
// blocks that transposing fours puts the words of neighbours side by side.
struct GroupWords {
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

GGM_HD GroupWords group_words(const RaceCounter& counter, uint32_t first_block, const VectorKeys& keys) {
  const Words blocks = counter.blocks + first_block;
  const TwoSplit c0 = {split(blocks), split(blocks + kLanes)};
  const PhiloxBlock<TwoSplit> block = philox4x32(c0, TwoSplit{counter.c1, counter.c1}, TwoSplit{counter.c2, counter.c2},
                                                 TwoSplit{counter.c3, counter.c3}, keys);
  GroupWords group = {{join(block.w0.first), join(block.w1.first), join(block.w2.first), join(block.w3.first),
                       join(block.w0.second), join(block.w1.second), join(block.w2.second), join(block.w3.second)}};
  transpose_fours(group.words[0], group.words[1], group.words[2], group.words[3]);
  transpose_fours(group.words[4], group.words[5], group.words[6], group.words[7]);
  return group;
}

// A group of tokens on the way into the race, lane by lane.
struct Entrants {
  float z[kGroup];
  uint32_t words[kGroup];
  int64_t first_token;

  __attribute__((always_inline)) void enter_lane(int64_t lane, RaceState& state) const {
    enter(state, z[lane], race_score(z[lane], words[lane]), static_cast<uint32_t>(first_token + lane));
  }
};

// The lane that seems to win: who enters it first is spared most of the others.
GGM_HD int64_t likely_winner(const Floats (&z)[8], const GroupWords& group) {
  Floats keys[8];
  for (int j = 0; j < 8; ++j) keys[j] = winning_key(z[j], group.words[j]);
  Floats largest = keys[0];
  for (int j = 1; j < 8; ++j) largest = larger(keys[j], largest);
  const Floats best = Floats{} + largest_lane(largest);
  for (int j = 0; j < 8; ++j) {
    const uint32_t lanes = lane_bits(keys[j] == best);
    if (lanes != 0) return j * kLanes + __builtin_ctz(lanes);
  }
  return 0;
}

// The exact scores of those in a group that may win.
__attribute__((noinline)) void enter_group(const Floats (&z)[8], const GroupWords& group, int64_t first_token,
                                           RaceState& state) {
  Entrants entrants;
  memcpy(entrants.z, z, sizeof entrants.z);
  memcpy(entrants.words, group.words, sizeof entrants.words);
  entrants.first_token = first_token;
  if (!(state.score > minus_infinity())) entrants.enter_lane(likely_winner(z, group), state);
  const Floats best = Floats{} + state.score;
  for (int j = 0; j < 8; ++j) {
    for (uint32_t lanes = lane_bits(may_win(z[j], group.words[j], best)); lanes != 0; lanes &= lanes - 1) {
      const int64_t lane = j * kLanes + __builtin_ctz(lanes);
      if (may_win(entrants.z[lane], entrants.words[lane], state.score)) entrants.enter_lane(lane, state);
    }
  }
}

// A chunk of kFew tokens at most.
template <class T>
GGM_HD void race_few(const Span<T>& chunk, const Race& race, const PhiloxKeys<uint32_t>& keys, const Law& law,
                     RaceState& state) {
  for (int64_t i = 0; i < chunk.tokens; i += 4) {
    const uint32_t token = static_cast<uint32_t>(chunk.token_begin + i);
    const PhiloxBlock<uint32_t> block = words_of(race, kRaceStream, token / 4, keys);
    const uint32_t words[4] = {block.w0, block.w1, block.w2, block.w3};
    for (int j = 0; j < 4 && i + j < chunk.tokens; ++j) {
      const float z = tempered(to_float(chunk.logits[i + j]), state.top, law.inverse_temperature);
      if (z >= law.cut && may_win(z, words[j], state.score)) enter(state, z, race_score(z, words[j]), token + j);
    }
  }
}

template <class T>
GGM_HD void race_many(const Span<T>& chunk, const Race& race, const VectorKeys& keys, const Law& law,
                      RaceState& state) {
  const RaceCounter counter = race_counter(race);
  const Floats top = Floats{} + state.top, cut = Floats{} + law.cut;
  for (int64_t i = 0; i < chunk.tokens; i += kGroup) {
    Floats z[8];
    load_group(chunk.logits + i, chunk.tokens - i, z);
    const int64_t first_token = chunk.token_begin + i;
    const GroupWords group = group_words(counter, static_cast<uint32_t>(first_token / 4), keys);
    const Floats best = Floats{} + state.score;
    Mask some = {};
    for (int j = 0; j < 8; ++j) {
      z[j] = tempered(z[j], top, law.inverse_temperature);
      z[j] = z[j] >= cut ? z[j] : Floats{} + minus_infinity();
      some |= may_win(z[j], group.words[j], best);
    }
    if (any(some)) enter_group(z, group, first_token, state);
  }
}

template <class T>
GGM_HD void add_sums(const Span<T>& chunk, const Law& law, RaceState& state) {
  const Floats top = Floats{} + state.top, cut = Floats{} + law.cut;
  Floats raw_sum = {}, law_sum = {};
  for (int64_t i = 0; i < chunk.tokens; i += kGroup) {
    Floats g[8];
    load_group(chunk.logits + i, chunk.tokens - i, g);
    for (int j = 0; j < 8; ++j) {
      if (law.raw_sum) raw_sum += exp_nonpositive(tempered(g[j], top, 1.0f));
      if (law.law_sum) {
        const Floats z = tempered(g[j], top, law.inverse_temperature);
        law_sum += z >= cut ? exp_nonpositive(z) : Floats{};
      }
    }
  }
  state.raw_sum += sum(raw_sum);
  state.law_sum += sum(law_sum);
}

// Largest logit; notes a NaN.
template <class T>
GGM_HD float chunk_top(const Span<T>& chunk, RaceState& state) {
  Floats tops[8];
  Mask nan = {};
  for (Floats& top : tops) top = Floats{} + minus_infinity();
  for (int64_t i = 0; i < chunk.tokens; i += kGroup) {
    Floats g[8];
    load_group(chunk.logits + i, chunk.tokens - i, g);
    for (int j = 0; j < 8; ++j) {
      nan |= g[j] != g[j];
      tops[j] = larger(g[j], tops[j]);
    }
  }
  if (any(nan)) state.has_nan = 1;
  for (int j = 1; j < 8; ++j) tops[0] = larger(tops[j], tops[0]);
  return largest_lane(tops[0]);
}

// The same of kFew tokens at most.
template <class T>
GGM_HD float few_top(const Span<T>& chunk, RaceState& state) {
  float top = minus_infinity();
  for (int64_t i = 0; i < chunk.tokens; ++i) {
    const float g = to_float(chunk.logits[i]);
    if (g != g) state.has_nan = 1;
    if (g > top) top = g;
  }
  return top;
}

// Temperature 0: the first of the largest wins.
template <class T>
GGM_HD void take_first(const Span<T>& chunk, float top, RaceState& state) {
  int64_t i = 0;
  while (to_float(chunk.logits[i]) != top) ++i;
  state.winner = static_cast<uint32_t>(chunk.token_begin + i);
  state.score = state.z = 0.0f;
  state.law_sum = 1.0f;
}

template <class T>
void race_span(const Span<T>& span, const Race& race, const RaceKeys& keys, const Law& law, int64_t present_token,
               RaceState& state) {
  const int64_t present = present_token - span.token_begin;
  if (present >= 0 && present < span.tokens) state.present = to_float(span.logits[present]);
  for (int64_t begin = 0; begin < span.tokens; begin += kChunk) {
    const int64_t left = span.tokens - begin;
    const Span<T> chunk = {span.logits + begin, span.token_begin + begin, left < kChunk ? left : kChunk};
    const bool few = chunk.tokens <= kFew;
    const float top = few ? few_top(chunk, state) : chunk_top(chunk, state);
    if (state.has_nan != 0u) return;  // no law: nothing is drawn
    const bool rises = top > state.top;
    rise_to(state, top, law.inverse_temperature);
    if (law.raw_sum || law.law_sum) add_sums(chunk, law, state);
    if (law.greedy) {
      if (rises) take_first(chunk, top, state);
    } else if (few) {
      race_few(chunk, race, keys.of_one, law, state);
    } else {
      race_many(chunk, race, keys.of_many, law, state);
    }
  }
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
