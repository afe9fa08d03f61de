// The decisions of corrupt, from random words.
#pragma once

#include "numerics/counter.h"
#include "numerics/host_device.h"
#include "numerics/philox.h"

namespace ggm {

// The words that keep a token: those below floor(keep_prob * 2^32), which meets every probability to 2^-32.
struct KeptWords {
  uint32_t below;
  uint32_t all;  // 1 for probability 1, whose bound does not fit
};

// Split at 1/2 (the difference is exact) because vector units convert floats to signed integers only.
// A probability outside [0, 1] counts as the nearer end, NaN as 0: nothing here may trap on a GPU.
GGM_HD KeptWords kept_words(float keep_prob) {
  const float p = keep_prob > 0.0f ? keep_prob : 0.0f;
  const float below_one = p < 0x1.fffffep-1f ? p : 0x1.fffffep-1f;
  const float half = below_one >= 0.5f ? 0.5f : 0.0f;
  const uint32_t base = below_one >= 0.5f ? 0x80000000u : 0u;
  return {base + static_cast<uint32_t>(static_cast<int32_t>((below_one - half) * 0x1p32f)),
          keep_prob >= 1.0f ? 1u : 0u};
}

// 1 where the word keeps the token, else 0.
GGM_HD uint32_t keeps(uint32_t word, KeptWords kept) {
  const uint32_t is_below = word < kept.below ? 1u : 0u;
  return is_below | kept.all;
}

// Uniform token, or column of an alias table: floor(word / 2^32 * vocab_size).
template <class Word>
GGM_HD Word uniform_token(Word word, uint32_t vocab_size) {
  Word high, low;
  WideProduct<Word>::of(vocab_size, word, high, low);
  return high;
}

// One row of the alias table: a column keeps its own token below the threshold, else gives its alias.
struct AliasRow {
  uint32_t threshold;
  uint32_t alias;
};

GGM_HD uint32_t alias_token(uint32_t column, uint32_t accept_word, AliasRow row) {
  return accept_word < row.threshold ? column : row.alias;
}

// What noise tokens are drawn from.
struct NoiseSource {
  const AliasRow* table;  // [vocab_size], or null: uniform, or one token alone
  int64_t mask_id;        // that token, or -1
  int64_t vocab_size;
};

// The noise token of one position of a token stream; seed and coordinates as in counter.h.
GGM_HD uint32_t noise_token(const NoiseSource& noise, uint64_t seed, uint32_t stream, uint32_t step,
                            uint64_t sample_id, uint32_t position) {
  if (noise.mask_id >= 0) return static_cast<uint32_t>(noise.mask_id);
  const PhiloxKeys<uint32_t> keys = philox_keys(seed);
  const PhiloxBlock<uint32_t> pair =
      philox4x32(counter_word0(stream, sample_id, kTokenBlock), position / 2, counter_word2(sample_id), step, keys);
  const uint32_t token = uniform_token(position % 2 == 0 ? pair.w1 : pair.w3, static_cast<uint32_t>(noise.vocab_size));
  if (noise.table == nullptr) return token;
  const PhiloxBlock<uint32_t> four = philox4x32(counter_word0(stream, sample_id, kAcceptanceBlock), position / 4,
                                                counter_word2(sample_id), step, keys);
  const uint32_t word = position % 4;
  const uint32_t accept = word == 0 ? four.w0 : word == 1 ? four.w1 : word == 2 ? four.w2 : four.w3;
  return alias_token(token, accept, noise.table[token]);
}

}  // namespace ggm
