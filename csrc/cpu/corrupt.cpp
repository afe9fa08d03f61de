#include "numerics/corrupt.h"

#include <type_traits>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "numerics/counter.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kTile = 256;         // positions whose words are held in L1 at once
constexpr int64_t kTask = 16 * kTile;  // positions a thread takes at once
constexpr int64_t kParallelFrom = 8192;  // fewer positions are done before a second thread has woken

// std::min is a weak symbol that the linker could share between instruction sets.
GGM_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Random words of one tile, in the order of its positions.
struct TileWords {
  alignas(64) uint32_t decide[kTile];
  alignas(64) uint32_t draw[kTile];  // already a token, or a column of the alias table
  alignas(64) uint32_t accept[kTile];
};

struct Row {
  uint64_t sample_id;
  uint32_t step;
  uint32_t stream;
};

GGM_HD PhiloxBlock<Words> words_at(const Row& row, int64_t position_block, uint32_t vocab_block,
                                   const VectorKeys& keys) {
  return philox4x32(broadcast(counter_word0(row.stream, row.sample_id, vocab_block)),
                    iota(static_cast<uint32_t>(position_block)), broadcast(counter_word2(row.sample_id)),
                    broadcast(row.step), keys);
}

GGM_HD void store_pairs(TileWords& words, int64_t at, SplitWords w0, SplitWords w1, SplitWords w2, SplitWords w3,
                        uint32_t vocab_size) {
  store_interleaved(words.decide + at, join(w0), join(w2));
  store_interleaved(words.draw + at, join(uniform_token(w1, vocab_size)), join(uniform_token(w3, vocab_size)));
}

// `begin` is a multiple of kTile; words past `count` may be filled too.
void fill_token_words(TileWords& words, const Row& row, const VectorKeys& keys, uint32_t vocab_size, int64_t begin,
                      int64_t count) {
  const SplitWords c0 = split(broadcast(counter_word0(row.stream, row.sample_id, kTokenBlock)));
  const SplitWords c2 = split(broadcast(counter_word2(row.sample_id)));
  const SplitWords c3 = split(broadcast(row.step));
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    const Words pairs = iota(static_cast<uint32_t>((begin + i) / 2));
    const TwoSplit c1 = {split(pairs), split(pairs + kLanes)};
    const PhiloxBlock<TwoSplit> block = philox4x32(TwoSplit{c0, c0}, c1, TwoSplit{c2, c2}, TwoSplit{c3, c3}, keys);
    store_pairs(words, i, block.w0.first, block.w1.first, block.w2.first, block.w3.first, vocab_size);
    store_pairs(words, i + 2 * kLanes, block.w0.second, block.w1.second, block.w2.second, block.w3.second,
                vocab_size);
  }
}

void fill_acceptance_words(TileWords& words, const Row& row, const VectorKeys& keys, int64_t begin, int64_t count) {
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    const PhiloxBlock<Words> block = words_at(row, (begin + i) / 4, kAcceptanceBlock, keys);
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t* out = words.accept + i + 4 * lane;
      out[0] = block.w0[lane];
      out[1] = block.w1[lane];
      out[2] = block.w2[lane];
      out[3] = block.w3[lane];
    }
  }
}

void take_aliases(TileWords& words, const AliasRow* noise, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    words.draw[i] = alias_token(words.draw[i], words.accept[i], noise[words.draw[i]]);
  }
}

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

// False where a token is outside [0, vocab_size): then token or vocab_size - 1 - token has its top bit set.
template <class Token>
bool select_tokens(Token* noisy, uint8_t* is_signal, const Token* tokens, const TileWords& words,
                   uint32_t vocab_size, int64_t count) {
  using Bits = std::make_unsigned_t<Token>;
  const Bits last = vocab_size - 1;
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
  const uint32_t vocab_size = static_cast<uint32_t>(args.vocab_size);
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t count = smaller(kTile, end - tile);
    const int64_t at = row_index * args.length + tile;
    prefetch(static_cast<const Token*>(args.tokens) + at, static_cast<Token*>(args.noisy) + at, count);
    fill_token_words(words, row, keys, vocab_size, tile, count);
    if (args.noise != nullptr) {
      fill_acceptance_words(words, row, keys, tile, count);
      take_aliases(words, args.noise, count);
    }
    const float* keep_prob = args.keep_prob + (args.keep_per_position ? at : row_index);
    valid &= mark_kept(words, keep_prob, args.keep_per_position, args.frozen == nullptr ? nullptr : args.frozen + at,
                       count);
    valid &= select_tokens(static_cast<Token*>(args.noisy) + at, args.is_signal + at,
                           static_cast<const Token*>(args.tokens) + at, words, vocab_size, count);
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
