// The race of a block over a part of a row, in one pass: its threads take chunks of sixteen bytes side by side. Four
// tokens share a Philox call and one cheap test, which seldom lets them through to the logarithms: a whole block
// measures itself by the best score that any of its warps has met.
#pragma once

#include "cuda/glauber_rows.h"
#include "cuda/relaxed.h"

namespace ggm::cuda {
namespace {

enum class Mode { plain, filtered, greedy };
enum class Sums { none, raw, both };  // raw alone where the law has no temperature and no filter either

struct Race {
  GlauberArgs args;
  LogitsTile tile;
  RaceSlots slots;
  const float2* thresholds;
  PhiloxKeys<uint32_t> keys;
  float slope;  // of the gate
  int part_tokens;
};

// A good score in the block, relative to the top of the warp that met it. Warps write it without waiting for each other:
// atomically, as a whole, in no order.
using Champion = unsigned long long;
__device__ __forceinline__ Champion pack(float top, float score) {
  return static_cast<Champion>(float_bits(top)) << 32 | float_bits(score);
}

// One warp in a race. The state is each lane's own but for the top, on which all agree as on the rest. What comes from
// other warps decides nothing but which tokens are measured in vain: else results would depend on timing.
template <Mode kMode, Sums kSums>
struct Runner {
  RaceState state;
  float bound;  // no score below it can win
  float cut;    // tempered logits below it are out
  float inverse_temperature, slope;
  float champion_top, champion_score;  // as last heard of
  Champion* champion;

  __device__ __forceinline__ float tempered_logit(float g) const {
    return tempered(g, state.top, inverse_temperature);
  }

  // What any warp has reached. The champion's top may be above ours, and then the bound above 0.
  __device__ __forceinline__ void listen() {
    const Champion now = load_relaxed(champion);
    if (__any_sync(kAllLanes, static_cast<uint32_t>(now) != float_bits(champion_score))) {
      const Champion heard = __shfl_sync(kAllLanes, now, 0);
      champion_top = float_of(static_cast<uint32_t>(heard >> 32));
      champion_score = float_of(static_cast<uint32_t>(heard));
    }
    bound = champion_score + tempered_logit(champion_top);
  }

  __device__ __forceinline__ void speak() {
    const float best = warp_largest(state.score);
    if (!(best > bound)) return;
    bound = champion_score = best;
    champion_top = state.top;
    if (threadIdx.x % kWarp == 0) store_relaxed(champion, pack(champion_top, champion_score));
  }

  // False where a lane holds a NaN. `largest` of the lane's chunk.
  __device__ __forceinline__ bool climb(float largest) {
    if (!__any_sync(kAllLanes, !(largest <= state.top))) return true;
    const float top = warp_largest(largest);
    if (top != top) {
      state.has_nan = 1u;
      return false;
    }
    rise_to(state, top, inverse_temperature);
    return true;
  }

  __device__ __forceinline__ void add_up(float g) {
    if constexpr (kSums != Sums::none) state.raw_sum += exp_for_sum(tempered(g, state.top, 1.0f));
    if constexpr (kSums == Sums::both) {
      const float z = tempered_logit(g);
      if (kMode != Mode::filtered || z >= cut) state.law_sum += exp_for_sum(z);
    }
  }

  __device__ __forceinline__ void enter_one(float g, uint32_t word, uint32_t token) {
    const float z = tempered_logit(g);
    if ((kMode != Mode::filtered || z >= cut) && may_win(z, word, bound)) enter(state, z, race_score(z, word), token);
  }
};

// Row coordinates of the noise.
struct Coordinates {
  uint32_t c0, c1, c2, c3;

  __device__ __forceinline__ PhiloxBlock<uint32_t> words(uint32_t block, const PhiloxKeys<uint32_t>& keys) const {
    return philox4x32(c0 | block, c1, c2, c3, keys);
  }
};

__device__ __forceinline__ uint32_t pick(const PhiloxBlock<uint32_t>& words, uint32_t j) {
  return j == 0 ? words.w0 : j == 1 ? words.w1 : j == 2 ? words.w2 : words.w3;
}

__device__ __forceinline__ uint32_t least_of(const PhiloxBlock<uint32_t>& words) {
  return min(min(words.w0, words.w1), min(words.w2, words.w3));
}

template <class T>
__device__ __forceinline__ float largest_of(const Quad<T>& quad) {
  return larger_or_nan(larger_or_nan(quad.value(0), quad.value(1)), larger_or_nan(quad.value(2), quad.value(3)));
}

// Of four tokens the one that seems to win.
template <class T, class Runner>
__device__ __forceinline__ uint32_t likeliest(const Runner& runner, const Quad<T>& quad,
                                              const PhiloxBlock<uint32_t>& words) {
  uint32_t likely = 0;
  float best = minus_infinity();
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const float key = winning_key(runner.tempered_logit(quad.value(j)), pick(words, j));
    likely = key > best ? j : likely;
    best = fmaxf(key, best);
  }
  return likely;
}

// Of a chunk in which some lane `may` have the winner, the tokens in question. The likeliest of all lanes enter first:
// measured by the best of them, the others seldom need their logarithms. Seldom run and long, hence loops, and hence
// the words once more instead of kept.
template <class T, class Runner>
__device__ __forceinline__ void contend(Runner& runner, const Race& race, const Coordinates& at_row,
                                        const Chunk<T>& chunk, uint32_t token, bool may) {
#pragma unroll 1
  for (uint32_t q = 0; q < Chunk<T>::kQuads; ++q) {
    const Quad<T> quad = quad_of(chunk, q);
    const PhiloxBlock<uint32_t> words = at_row.words(token / 4 + q, race.keys);
    const uint32_t likely = likeliest(runner, quad, words);
    if (may) runner.enter_one(quad.pick(likely), pick(words, likely), token + 4 * q + likely);
    runner.speak();
#pragma unroll 1
    for (uint32_t j = 0; may && j < 4; ++j) {
      if (j != likely) runner.enter_one(quad.pick(j), pick(words, j), token + 4 * q + j);
    }
  }
}

// Whether the chunk may hold the winner of the warp, seen from the largest logit and the least word of each four.
template <class T, Mode kMode, Sums kSums>
__device__ __forceinline__ bool may_hold_winner(const Runner<kMode, kSums>& runner, const Race& race,
                                                const Coordinates& at_row, const float (&largest)[Chunk<T>::kQuads],
                                                uint32_t token) {
  const Gate gate = gate_of(runner.state.top, runner.slope, runner.bound);
  bool may = false;
#pragma unroll
  for (int q = 0; q < Chunk<T>::kQuads; ++q) {
    may |= passes(gate, largest[q], least_of(at_row.words(token / 4 + q, race.keys)));
  }
  return may;
}

template <class T, bool kAligned, Mode kMode, Sums kSums>
__device__ __forceinline__ void run(Runner<kMode, kSums>& runner, const Race& race, const Coordinates& at_row,
                                    const T* row, uint32_t begin, uint32_t end) {
  constexpr int kSize = Chunk<T>::kSize, kQuads = Chunk<T>::kQuads;
  const uint32_t lane_tokens = threadIdx.x % kWarp * kSize, stride = blockDim.x * kSize;
  uint32_t base = begin + threadIdx.x / kWarp * kWarp * kSize;  // of the warp's chunks, its lanes' side by side
  Chunk<T> next = load_chunk<kAligned>(row, base + lane_tokens, end);
#pragma unroll 1
  for (; base < end; base += stride) {
    const Chunk<T> chunk = next;
    const uint32_t at = base + lane_tokens, token = static_cast<uint32_t>(race.tile.token_begin) + at;
    next = load_chunk<kAligned>(row, at + stride, end);

    float largest[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) largest[q] = largest_of(quad_of(chunk, q));
    const float largest_of_all = kQuads == 1 ? largest[0] : larger_or_nan(largest[0], largest[kQuads - 1]);
    if constexpr (kMode != Mode::filtered) {
      const float before = runner.state.top;
      if (!runner.climb(largest_of_all)) return;
      if (runner.state.top == minus_infinity()) continue;  // or -inf would count as the largest
      if (kMode == Mode::greedy && runner.state.top > before) {
        // The first of the largest is in this chunk of the warp; later equals come behind.
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          if (chunk.value(j) == runner.state.top) enter(runner.state, 0.0f, 0.0f, token + j);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j) runner.add_up(chunk.value(j));
    if constexpr (kMode != Mode::greedy) {
      const bool is_in = kMode != Mode::filtered || runner.tempered_logit(largest_of_all) >= runner.cut;
      if (kMode == Mode::filtered && !__any_sync(kAllLanes, is_in)) continue;
      runner.listen();
      const bool may = is_in && may_hold_winner<T>(runner, race, at_row, largest, token);
      if (__any_sync(kAllLanes, may)) contend(runner, race, at_row, chunk, token, may);
    }
  }
}

}  // namespace
}  // namespace ggm::cuda
