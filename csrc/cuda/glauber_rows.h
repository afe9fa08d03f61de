// What the kernels of a Glauber step share: how the logits of a row are read, and whether they need be.
#pragma once

#include "cuda/launch.h"
#include "glauber_row.h"
#include "numerics/half.h"
#include "numerics/race_merge.h"

namespace ggm::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ float minus_infinity() { return float_of(0xFF800000u); }

__device__ __forceinline__ uint32_t bits_of(float value) { return float_bits(value); }
__device__ __forceinline__ uint32_t bits_of(BFloat16 value) { return value.bits; }
__device__ __forceinline__ uint32_t bits_of(Float16 value) { return value.bits; }

// Four logits that share a Philox call, packed: 16-bit values in registers of their own would take twice as many.
template <class T>
struct Quad {
  uint32_t words[2];
  __device__ __forceinline__ float value(int j) const { return pick(j); }
  // For an index that is not known when compiling.
  __device__ __forceinline__ float pick(uint32_t j) const {
    return to_float(T{static_cast<uint16_t>((j < 2 ? words[0] : words[1]) >> (j % 2 * 16))});
  }
};
template <>
struct Quad<float> {
  uint32_t words[4];
  __device__ __forceinline__ float value(int j) const { return float_of(words[j]); }
  __device__ __forceinline__ float pick(uint32_t j) const {
    return float_of(j == 0 ? words[0] : j == 1 ? words[1] : j == 2 ? words[2] : words[3]);
  }
};

// Sixteen bytes of logits.
template <class T>
struct Chunk {
  static constexpr int kSize = 16 / sizeof(T);
  static constexpr int kQuads = kSize / 4;
  static constexpr int kPerWord = 4 / sizeof(T);
  uint32_t words[4];

  __device__ __forceinline__ void put(int j, uint32_t bits) {
    if (j % kPerWord == 0) {
      words[j / kPerWord] = bits;
    } else {
      words[j / kPerWord] |= bits << 16;
    }
  }
  __device__ __forceinline__ float value(int j) const { return quad_of(*this, j / 4).value(j % 4); }
};

__device__ __forceinline__ Quad<float> quad_of(const Chunk<float>& chunk, uint32_t) {
  return {{chunk.words[0], chunk.words[1], chunk.words[2], chunk.words[3]}};
}
template <class T>
__device__ __forceinline__ Quad<T> quad_of(const Chunk<T>& chunk, uint32_t q) {
  return {{q == 0 ? chunk.words[0] : chunk.words[2], q == 0 ? chunk.words[1] : chunk.words[3]}};
}

template <class T>
__device__ __forceinline__ uint32_t minus_infinity_bits() {
  T value;
  round_to(minus_infinity(), value);
  return bits_of(value);
}

template <class T>
__device__ __forceinline__ const T* row_logits(const LogitsTile& tile, int64_t i) {
  return static_cast<const T*>(tile.logits) + i / tile.group * tile.group_stride + i % tile.group * tile.row_stride;
}

__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// As one load: a copy of assumed alignment was compiled to sixteen where the address came by a branch.
template <class T>
__device__ __forceinline__ Chunk<T> load_aligned(const void* from) {
  const uint4 words = __ldg(static_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
}

// Logits from `at` on, -inf from `end` on. Rows of odd length lie at odd addresses: those are read one by one.
template <bool kAligned, class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* row, uint32_t at, uint32_t end) {
  const T* from = row + at;
  if (kAligned && at + Chunk<T>::kSize <= end) return load_aligned<T>(from);
  Chunk<T> chunk;
  if (at + Chunk<T>::kSize > end) {
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) chunk.put(j, at + j < end ? bits_of(from[j]) : minus_infinity_bits<T>());
  } else {
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) chunk.put(j, bits_of(from[j]));
  }
  return chunk;
}

template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* row, uint32_t at, uint32_t end, bool aligned) {
  return aligned ? load_chunk<true>(row, at, end) : load_chunk<false>(row, at, end);
}

__device__ __forceinline__ int64_t row_of(const LogitsTile& tile, int64_t i) {
  return tile.row_ids == nullptr ? tile.row_begin + i : tile.row_ids[i];
}

// The logits of a row of a tile, one by one, as they count.
template <class T>
struct RowLogits {
  const T* logits;
  const T* bias;  // or null
  Edits edits;
  int64_t token_begin;
  uint32_t tokens;

  // What token `at` of the tile counts, whose logit is g.
  __device__ __forceinline__ float edited(float g, uint32_t at) const {
    if (bias != nullptr) g += to_float(bias[at]);
    g = capped(g, edits.softcap);
    // A sum of its own: where it were one instruction with the product of the cap, in one kernel and not in the next,
    // they would disagree about the largest logit.
    return token_begin + at == edits.shifted_token ? __fadd_rn(g, edits.shift) : g;
  }
  __device__ __forceinline__ float operator[](uint32_t at) const { return edited(to_float(logits[at]), at); }
  // -inf beyond the end.
  __device__ __forceinline__ float or_nothing(uint32_t at) const { return at < tokens ? (*this)[at] : minus_infinity(); }
  __device__ __forceinline__ bool holds(int64_t token) const {
    return token >= token_begin && token < token_begin + tokens;
  }
  __device__ __forceinline__ float of(int64_t token) const { return (*this)[static_cast<uint32_t>(token - token_begin)]; }
};

template <class T>
__device__ __forceinline__ RowLogits<T> logits_of(const GlauberArgs& args, const LogitsTile& tile, int64_t i,
                                                  const Place& place) {
  return {row_logits<T>(tile, i), static_cast<const T*>(tile.bias), edits_of(args, place), tile.token_begin,
          static_cast<uint32_t>(tile.tokens)};
}

// What the network gave for a token of the whole row.
template <class T>
struct PresentLogit {
  const T* logits;
  const T* bias;
  GGM_HD_MEMBER float operator()(int64_t token) const {
    return to_float(logits[token]) + (bias == nullptr ? 0.0f : to_float(bias[token]));
  }
};

// What is settled before a row's race. In a part of the vocabulary a token that stands there may not be found: then
// only a row without work settles early.
template <class T>
__device__ __forceinline__ Early early_of(const GlauberArgs& args, const LogitsTile& tile, int64_t i,
                                          const Place& place) {
  if (tile.tokens == args.vocab_size) {
    const PresentLogit<T> present = {row_logits<T>(tile, i), static_cast<const T*>(tile.bias)};
    return early_of(args, place, present);
  }
  const bool is_idle_row = is_idle(args, place);
  return {is_idle_row, is_idle_row};
}

// A row's filters: its largest logit, and the least tempered logit that stays, -inf where all do.
using Threshold = float2;

// The law of row i of a tile. thresholds: null where there are no filters.
__device__ __forceinline__ Law filtered_law(const GlauberArgs& args, const Place& place, const Threshold* thresholds,
                                            int64_t i) {
  Law law = law_of(args, place);
  if (thresholds != nullptr) {
    law.threshold = thresholds[i].y;
    law.filtered = law.threshold > minus_infinity();
  }
  return law;
}

__device__ __forceinline__ float warp_largest(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = larger_or_nan(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// The same bits in every lane: addition is commutative.
template <class Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ __forceinline__ uint32_t warp_least(uint32_t value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = min(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// The two largest of some values.
struct Two {
  float first, second;

  __device__ __forceinline__ void take(float value) {
    second = fmaxf(second, fminf(first, value));
    first = fmaxf(first, value);
  }
};

__device__ __forceinline__ Two warp_two(Two two) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float first = __shfl_xor_sync(kAllLanes, two.first, distance);
    const float second = __shfl_xor_sync(kAllLanes, two.second, distance);
    two.second = fmaxf(fminf(two.first, first), fmaxf(two.second, second));
    two.first = fmaxf(two.first, first);
  }
  return two;
}

// Threads that share `tokens` tokens of a row: whole warps, no more than have something to read.
inline int threads_for(int64_t tokens, int chunk, int most) {
  const int64_t warp = int64_t{kWarp} * chunk;
  return static_cast<int>(std::clamp<int64_t>((tokens + warp - 1) / warp * kWarp, kWarp, most));
}

}  // namespace ggm::cuda
