#include "numerics/corrupt.h"

#include <type_traits>

#include "cpu/isa.h"
#include "cpu/noise_words.h"
#include "cpu/parallel.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kTask = 16 * kTile;    // positions a thread takes at once
constexpr int64_t kParallelFrom = 8192;  // fewer positions are done before a second thread has woken

// Sets the top bit, which no token has, of the draws that are not needed: there the token is kept. False where
// a probability is outside [0, 1] or NaN. Every loop has one width of element: that compilers vectorise.
bool mark_kept(TileWords& words, const float* keep_prob, bool keep_per_position, const uint8_t* frozen,
               int64_t count) {
  uint32_t outside = 0;
  if (keep_per_position) {
    for (int64_t i = 0; i < count; ++i) outside |= keep_prob[i] >= 0.0f ? 0u : 1u;
    for (int64_t i = 0; i < count; ++i) outside |= keep_prob[i] <= 1.0f ? 0u : 1u;
    for (int64_t i = 0; i < count; ++i) words.draw[i] |= keeps(words.decide[i], kept_words(keep_prob[i])) << 31;
  } else {
    const float p = *keep_prob;
    outside = p >= 0.0f && p <= 1.0f ? 0u : 1u;
    const KeptWords kept = kept_words(p);
    for (int64_t i = 0; i < count; ++i) words.draw[i] |= keeps(words.decide[i], kept) << 31;
  }
  if (frozen != nullptr) {
    for (int64_t i = 0; i < count; ++i) words.draw[i] |= frozen[i] != 0 ? 1u << 31 : 0u;
  }
  return outside == 0;
}

// False where a token is outside [0, bound): then token or bound - 1 - token has its top bit set.
template <class Token>
bool select_tokens(Token* noisy, uint8_t* is_signal, const Token* tokens, const TileWords& words,
                   uint32_t bound, int64_t count) {
  using Bits = std::make_unsigned_t<Token>;
  const Bits last = bound - 1;
  Bits outside = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Bits token = static_cast<Bits>(tokens[i]);
    outside |= token | (last - token);
    const Token draw = static_cast<int32_t>(words.draw[i]);
    noisy[i] = draw < 0 ? tokens[i] : draw;
  }
  for (int64_t i = 0; i < count; ++i) is_signal[i] = static_cast<uint8_t>(words.draw[i] >> 31);
  return (outside >> (8 * sizeof(Token) - 1)) == 0;
}

// Tokens come, and their places go, while the random words are made.
template <class Token>
GGM_HD void prefetch(const Token* tokens, Token* noisy, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Token);
  for (int64_t i = 0; i < count; i += kLine) {
    __builtin_prefetch(tokens + i, 0);
    __builtin_prefetch(noisy + i, 1);
  }
}

template <class Token>
bool corrupt_span(const CorruptArgs& args, const Row& row, const VectorKeys& keys, int64_t row_index, int64_t begin,
                  int64_t end) {
  TileWords words;
  bool valid = true;
  const uint32_t bound = static_cast<uint32_t>(args.token_bound);
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t count = smaller(kTile, end - tile);
    const int64_t at = row_index * args.length + tile;
    prefetch(static_cast<const Token*>(args.tokens) + at, static_cast<Token*>(args.noisy) + at, count);
    fill_noise(words, row, keys, args.noise, tile, count);
    const float* keep_prob = args.keep_prob + (args.keep_per_position ? at : row_index * args.keep_row_stride);
    valid &= mark_kept(words, keep_prob, args.keep_per_position, args.frozen == nullptr ? nullptr : args.frozen + at,
                       count);
    valid &= select_tokens(static_cast<Token*>(args.noisy) + at, args.is_signal + at,
                           static_cast<const Token*>(args.tokens) + at, words, bound, count);
  }
  return valid;
}

template <class Token>
bool corrupt_all(const CorruptArgs& args, int threads) {
  const int64_t tasks_per_row = (args.length + kTask - 1) / kTask;
  const int64_t tasks = args.batch * tasks_per_row;
  const VectorKeys keys = vector_keys(args.seed);
  bool valid = true;
  for_each(tasks, threads, args.batch * args.length >= kParallelFrom, [&](int64_t task) {
    const int64_t row_index = task / tasks_per_row;
    const int64_t begin = task % tasks_per_row * kTask;
    const int64_t sample_id = args.sample_ids == nullptr ? row_index : args.sample_ids[row_index];
    const Row row = {static_cast<uint64_t>(sample_id), static_cast<uint32_t>(args.step), args.stream};
    const bool id_valid = static_cast<uint64_t>(sample_id) >> kSampleIdBits == 0;
    const int64_t end = smaller(begin + kTask, args.length);
    if (!id_valid || !corrupt_span<Token>(args, row, keys, row_index, begin, end)) refute(valid);
  });
  return valid;
}

}  // namespace

bool corrupt(const CorruptArgs& args, int threads) {
  if (static_cast<uint64_t>(args.step) >> kStepBits != 0) return false;
  return args.token_bytes == 8 ? corrupt_all<int64_t>(args, threads) : corrupt_all<int32_t>(args, threads);
}

}  // namespace ggm::cpu::GGM_ISA
