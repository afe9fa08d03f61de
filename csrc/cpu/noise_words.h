// Random words of token streams, a tile of positions at a time, in vectors. Internal to each instruction set.
#pragma once

#include "cpu/simd.h"
#include "numerics/corrupt.h"
#include "numerics/counter.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kTile = 256;  // positions whose words are held in L1 at once

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

// What a word draws: a token below vocab_size (or a column of its alias table), or the mask always.
struct UniformDraw {
  uint32_t vocab_size;
  GGM_HD Words of(const UniformDraw& draw, SplitWords word) {
    return join(uniform_token(word, draw.vocab_size));
  }
};
struct MaskDraw {
  uint32_t mask_id;
  GGM_HD Words of(const MaskDraw& draw, SplitWords) { return broadcast(draw.mask_id); }
};

GGM_HD PhiloxBlock<Words> words_at(const Row& row, int64_t position_block, uint32_t vocab_block,
                                   const VectorKeys& keys) {
  return philox4x32(broadcast(counter_word0(row.stream, row.sample_id, vocab_block)),
                    iota(static_cast<uint32_t>(position_block)), broadcast(counter_word2(row.sample_id)),
                    broadcast(row.step), keys);
}

template <class Draw>
GGM_HD void store_pairs(TileWords& words, int64_t at, SplitWords w0, SplitWords w1, SplitWords w2, SplitWords w3,
                        const Draw& draw) {
  store_interleaved(words.decide + at, join(w0), join(w2));
  store_interleaved(words.draw + at, Draw::of(draw, w1), Draw::of(draw, w3));
}

// `begin` is a multiple of kTile; words past `count` may be filled too.
template <class Draw>
void fill_token_words(TileWords& words, const Row& row, const VectorKeys& keys, const Draw& draw, int64_t begin,
                      int64_t count) {
  const SplitWords c0 = split(broadcast(counter_word0(row.stream, row.sample_id, kTokenBlock)));
  const SplitWords c2 = split(broadcast(counter_word2(row.sample_id)));
  const SplitWords c3 = split(broadcast(row.step));
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    const Words pairs = iota(static_cast<uint32_t>((begin + i) / 2));
    const TwoSplit c1 = {split(pairs), split(pairs + kLanes)};
    const PhiloxBlock<TwoSplit> block = philox4x32(TwoSplit{c0, c0}, c1, TwoSplit{c2, c2}, TwoSplit{c3, c3}, keys);
    store_pairs(words, i, block.w0.first, block.w1.first, block.w2.first, block.w3.first, draw);
    store_pairs(words, i + 2 * kLanes, block.w0.second, block.w1.second, block.w2.second, block.w3.second, draw);
  }
}

inline void fill_acceptance_words(TileWords& words, const Row& row, const VectorKeys& keys, int64_t begin,
                                  int64_t count) {
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

inline void take_aliases(TileWords& words, const AliasRow* noise, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    words.draw[i] = alias_token(words.draw[i], words.accept[i], noise[words.draw[i]]);
  }
}

// Fills decide and draw of the tile from `begin` on; draw holds noise tokens.
inline void fill_noise(TileWords& words, const Row& row, const VectorKeys& keys, const NoiseSource& noise,
                       int64_t begin, int64_t count) {
  if (noise.mask_id >= 0) {
    fill_token_words(words, row, keys, MaskDraw{static_cast<uint32_t>(noise.mask_id)}, begin, count);
    return;
  }
  fill_token_words(words, row, keys, UniformDraw{static_cast<uint32_t>(noise.vocab_size)}, begin, count);
  if (noise.table != nullptr) {
    fill_acceptance_words(words, row, keys, begin, count);
    take_aliases(words, noise.table, count);
  }
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
