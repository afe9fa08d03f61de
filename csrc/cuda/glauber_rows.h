// What the kernels of a Glauber step share: where a row is, what it needs, and how its logits are read.
#pragma once

#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/counter.h"
#include "numerics/half.h"
#include "numerics/philox.h"
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

// Logits from `at` on, -inf from `end` on. Rows of odd length lie at odd addresses: those are read one by one.
template <bool kAligned, class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* row, uint32_t at, uint32_t end) {
  const T* from = row + at;
  Chunk<T> chunk;
  if (at + Chunk<T>::kSize > end) {
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) chunk.put(j, at + j < end ? bits_of(from[j]) : minus_infinity_bits<T>());
  } else if constexpr (kAligned) {
    memcpy(&chunk, __builtin_assume_aligned(from, 16), sizeof chunk);
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

// Where a row's token stands. An id or position out of range is the caller's error: such a row is left alone.
struct Place {
  int64_t sequence, k, position, token_at;
  int64_t token;  // -1 where there is none
  uint64_t sample_id;
  bool is_legal;
};

__device__ __forceinline__ int64_t row_of(const LogitsTile& tile, int64_t i) {
  return tile.row_ids == nullptr ? tile.row_begin + i : tile.row_ids[i];
}

__device__ __forceinline__ Place place_of(const GlauberArgs& args, int64_t row) {
  Place place;
  place.sequence = row / args.count;
  place.k = row % args.count;
  place.position = args.positions[place.sequence * args.position_row_stride + place.k];
  place.token_at = place.sequence * args.token_row_stride + place.position * args.token_stride;
  place.token = -1;
  if (place.position >= 0 && place.position < args.length) {
    place.token = args.token_bytes == 8 ? static_cast<const int64_t*>(args.tokens)[place.token_at]
                                        : static_cast<const int32_t*>(args.tokens)[place.token_at];
  }
  place.is_legal = place.token >= 0 && place.token < args.vocab_size;
  place.sample_id =
      static_cast<uint64_t>(args.sample_ids == nullptr ? place.sequence : args.sample_ids[place.sequence]);
  return place;
}

__device__ __forceinline__ uint32_t step_of(const GlauberArgs& args) {
  return static_cast<uint32_t>(args.step_pointer == nullptr ? args.step : *args.step_pointer);
}

__device__ __forceinline__ bool is_frozen(const GlauberArgs& args, const Place& place) {
  return args.frozen != nullptr && args.frozen[place.sequence * args.length + place.position] != 0;
}

__device__ __forceinline__ float row_verdict(const GlauberArgs& args, const Place& place, float g) {
  const float rate = args.noise_rate[place.sequence * args.noise_row_stride + place.k * args.noise_stride];
  const float log_noise_prob = args.noise_log_probs == nullptr ? -logf(static_cast<float>(args.vocab_size))
                                                               : args.noise_log_probs[place.token];
  return verdict(g, rate, log_noise_prob);
}

__device__ __forceinline__ bool row_keeps(const GlauberArgs& args, const Place& place, float f) {
  const PhiloxBlock<uint32_t> block =
      philox4x32(counter_word0(kKeepStream, place.sample_id, 0), static_cast<uint32_t>(place.position),
                 counter_word2(place.sample_id), step_of(args), philox_keys(args.seed));
  return keeps_token(f, block.w0);
}

// Logit of the present token where it is in the tile, else NaN.
template <class T>
__device__ __forceinline__ float present_logit(const LogitsTile& tile, const T* logits, const Place& place) {
  const int64_t at = place.token - tile.token_begin;
  return place.is_legal && at >= 0 && at < tile.tokens ? to_float(logits[at]) : float_of(0x7FC00000u);
}

// Whether the row keeps its token whatever its race brings and nothing else asks for its logits: seen from one of
// them, most rows of keep-or-replace need not be read.
__device__ __forceinline__ bool is_settled(const GlauberArgs& args, const LogitsTile& tile, const Place& place,
                                           float present) {
  if (place.is_legal && is_frozen(args, place)) return true;
  if (args.log_sum_exp != nullptr) return false;
  if (!place.is_legal) return true;
  const bool is_cheap = args.noise_rate != nullptr && !args.normalize && tile.tokens == args.vocab_size;
  if (args.keep_prob != nullptr && !is_cheap) return false;
  return is_cheap && row_keeps(args, place, row_verdict(args, place, present));
}

__device__ __forceinline__ float warp_largest(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = larger_or_nan(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// The states of `width` lanes side by side, a power of two, in the first of them.
__device__ __forceinline__ RaceState merge_lanes(RaceState state, int width, float inverse_temperature) {
  for (int distance = width / 2; distance > 0; distance /= 2) {
    RaceState other;
    other.top = __shfl_xor_sync(kAllLanes, state.top, distance);
    other.score = __shfl_xor_sync(kAllLanes, state.score, distance);
    other.z = __shfl_xor_sync(kAllLanes, state.z, distance);
    other.winner = __shfl_xor_sync(kAllLanes, state.winner, distance);
    other.raw_sum = __shfl_xor_sync(kAllLanes, state.raw_sum, distance);
    other.law_sum = __shfl_xor_sync(kAllLanes, state.law_sum, distance);
    other.present = __shfl_xor_sync(kAllLanes, state.present, distance);
    other.has_nan = __shfl_xor_sync(kAllLanes, state.has_nan, distance);
    state = merge(state, other, inverse_temperature);
  }
  return state;
}

inline bool has_filter(const GlauberArgs& args) {
  return !args.greedy && (args.top_k < args.vocab_size || args.top_p < 1.0 || args.log_min_p > float_of(0xFF800000u));
}

// Threads that share `tokens` tokens of a row: whole warps, no more than have something to read.
inline int threads_for(int64_t tokens, int chunk, int most) {
  const int64_t warp = int64_t{kWarp} * chunk;
  return static_cast<int>(std::clamp<int64_t>((tokens + warp - 1) / warp * kWarp, kWarp, most));
}

}  // namespace ggm::cuda
