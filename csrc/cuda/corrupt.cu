// One thread takes four positions of a row: two Philox calls for their tokens and, where the noise has an alias table,
// one for all four acceptances. Bytes moved per position: token in, token out, one bool.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/corrupt.h"
#include "numerics/counter.h"
#include "numerics/philox.h"

namespace ggm::cuda {
namespace {

enum class Noise { uniform, table, one };  // one: a token that is always the same
enum class Keeping { by_row, by_position };  // the latter also where positions may be frozen

struct Corruption {
  CorruptArgs args;
  PhiloxKeys<uint32_t> keys;
  int64_t fours_per_row, fours;
};

template <class Token>
struct Four {
  Token values[4];
};

// What a row's positions have in common.
struct RowState {
  uint32_t c0, c2;  // words of the Philox counter
  uint32_t step;
  KeptWords kept;   // where all positions share a probability
};

__device__ __forceinline__ RowState state_of(const CorruptArgs& args, int64_t row) {
  const uint64_t sample_id = static_cast<uint64_t>(args.sample_ids == nullptr ? row : args.sample_ids[row]);
  RowState state;
  state.c0 = counter_word0(args.stream, sample_id, 0);
  state.c2 = counter_word2(sample_id);
  state.step = static_cast<uint32_t>(args.step_pointer == nullptr ? args.step : *args.step_pointer);
  state.kept = args.keep_per_position ? KeptWords{0, 0} : kept_words(args.keep_prob[row * args.keep_row_stride]);
  return state;
}

__device__ __forceinline__ PhiloxBlock<uint32_t> words_of(const Corruption& c, const RowState& row, uint32_t block,
                                                          uint32_t at) {
  return philox4x32(row.c0 | block, at, row.c2, row.step, c.keys);
}

template <Noise kNoise>
__device__ __forceinline__ uint32_t noise_of(const NoiseSource& noise, uint32_t draw, uint32_t accept) {
  if (kNoise == Noise::one) return static_cast<uint32_t>(noise.mask_id);
  const uint32_t token = uniform_token(draw, static_cast<uint32_t>(noise.vocab_size));
  return kNoise == Noise::table ? alias_token(token, accept, noise.table[token]) : token;
}

template <class Token, Noise kNoise, Keeping kKeeping>
__device__ __forceinline__ void corrupt_one(const Corruption& c, const RowState& row, int64_t at, uint32_t decide,
                                            uint32_t draw, uint32_t accept, Token& token, bool& is_signal) {
  const CorruptArgs& args = c.args;
  KeptWords kept = row.kept;
  if (kKeeping == Keeping::by_position && args.keep_per_position) kept = kept_words(args.keep_prob[at]);
  is_signal = keeps(decide, kept) != 0;
  if (kKeeping == Keeping::by_position && args.frozen != nullptr) is_signal |= args.frozen[at] != 0;
  if (!is_signal) token = static_cast<Token>(noise_of<kNoise>(args.noise, draw, accept));
}

// kWhole: all four are there and aligned, and tokens move as sixteen bytes.
template <class Token, bool kWhole>
__device__ __forceinline__ Four<Token> load(const Token* from, int there) {
  Four<Token> four = {};
  if constexpr (kWhole) {
    memcpy(&four, __builtin_assume_aligned(from, 16), sizeof four);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) four.values[j] = j < there ? from[j] : Token{0};
  }
  return four;
}

template <class Token, bool kWhole>
__device__ __forceinline__ void store(Token* to, uint8_t* to_signal, int there, const Four<Token>& four,
                                      const bool (&is_signal)[4]) {
  if constexpr (kWhole) {
    uint4 words[sizeof four / sizeof(uint4)];
    memcpy(words, &four, sizeof words);
#pragma unroll
    for (size_t j = 0; j < sizeof four / sizeof(uint4); ++j) reinterpret_cast<uint4*>(to)[j] = words[j];
    *reinterpret_cast<uchar4*>(to_signal) = make_uchar4(is_signal[0], is_signal[1], is_signal[2], is_signal[3]);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j >= there) break;
      to[j] = four.values[j];
      to_signal[j] = is_signal[j];
    }
  }
}

__device__ __forceinline__ int64_t quotient(int64_t i, const Corruption& c) {
  if (c.fours >> 32 != 0) return i / c.fours_per_row;
  return static_cast<uint32_t>(i) / static_cast<uint32_t>(c.fours_per_row);  // in a few instructions
}

template <class Token, Noise kNoise, Keeping kKeeping, bool kWhole>
__global__ void __launch_bounds__(kThreads) corrupt_kernel(const __grid_constant__ Corruption c) {
  const CorruptArgs& args = c.args;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < c.fours; i += stride) {
    const int64_t row = quotient(i, c);
    const uint32_t four = static_cast<uint32_t>(i - row * c.fours_per_row);
    const int64_t at = row * args.length + 4 * int64_t{four};
    const int there = kWhole ? 4 : static_cast<int>(min(int64_t{4}, args.length - 4 * int64_t{four}));
    Four<Token> tokens = load<Token, kWhole>(static_cast<const Token*>(args.tokens) + at, there);
    const RowState state = state_of(args, row);
    const PhiloxBlock<uint32_t> first = words_of(c, state, kTokenBlock, 2 * four);
    const PhiloxBlock<uint32_t> second = words_of(c, state, kTokenBlock, 2 * four + 1);
    PhiloxBlock<uint32_t> accept = {};
    if constexpr (kNoise == Noise::table) accept = words_of(c, state, kAcceptanceBlock, four);
    bool is_signal[4] = {};
    const uint32_t decide[4] = {first.w0, first.w2, second.w0, second.w2};
    const uint32_t draw[4] = {first.w1, first.w3, second.w1, second.w3};
    const uint32_t accepts[4] = {accept.w0, accept.w1, accept.w2, accept.w3};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j >= there) break;
      corrupt_one<Token, kNoise, kKeeping>(c, state, at + j, decide[j], draw[j], accepts[j], tokens.values[j],
                                           is_signal[j]);
    }
    store<Token, kWhole>(static_cast<Token*>(args.noisy) + at, args.is_signal + at, there, tokens, is_signal);
  }
}

bool moves_in_fours(const CorruptArgs& args) {
  const auto aligned = [](const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
  return args.length % 4 == 0 && aligned(args.tokens, sizeof(uint4)) && aligned(args.noisy, sizeof(uint4)) &&
         aligned(args.is_signal, sizeof(uchar4));
}

template <class Token, Noise kNoise, Keeping kKeeping>
void launch(const Corruption& corruption, const Launch& where) {
  if (moves_in_fours(corruption.args)) {
    start<corrupt_kernel<Token, kNoise, kKeeping, true>>(where, corruption);
  } else {
    start<corrupt_kernel<Token, kNoise, kKeeping, false>>(where, corruption);
  }
}

template <class Token, Noise kNoise>
void launch(const Corruption& corruption, const Launch& where) {
  if (corruption.args.keep_per_position || corruption.args.frozen != nullptr) {
    launch<Token, kNoise, Keeping::by_position>(corruption, where);
  } else {
    launch<Token, kNoise, Keeping::by_row>(corruption, where);
  }
}

template <class Token>
void launch(const Corruption& corruption, const Launch& where) {
  const NoiseSource& noise = corruption.args.noise;
  if (noise.mask_id >= 0) {
    launch<Token, Noise::one>(corruption, where);
  } else if (noise.table != nullptr) {
    launch<Token, Noise::table>(corruption, where);
  } else {
    launch<Token, Noise::uniform>(corruption, where);
  }
}

}  // namespace

const char* corrupt(const CorruptArgs& args, void* stream, int device) {
  if (args.batch == 0 || args.length == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const int64_t fours_per_row = (args.length + 3) / 4;
  const Corruption corruption = {args, philox_keys(args.seed), fours_per_row, args.batch * fours_per_row};
  const Launch where = {grid_for(corruption.fours, device), kThreads, static_cast<cudaStream_t>(stream)};
  if (args.token_bytes == 8) {
    launch<int64_t>(corruption, where);
  } else {
    launch<int32_t>(corruption, where);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
