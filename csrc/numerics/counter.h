// How logical coordinates fill the 128-bit Philox counter. The same table stands in
// ggm_kernels/randomness.py, with the ranges that the public calls check and how streams spend words.
//
//   c0: 20 bits vocabulary block | 4 bits stream | 8 bits sample id, bits 32..39
//   c1: 32 bits position block
//   c2: 32 bits sample id, bits 0..31
//   c3: 32 bits step
#pragma once

#include "numerics/host_device.h"

namespace ggm {

constexpr int kVocabBlockBits = 20;
constexpr int kStreamBits = 4;
constexpr int kSampleIdBits = 40;
constexpr int kStepBits = 32;

// A corrupting stream takes two words a position from vocabulary block 0, and one from block 1 for a noise law.
constexpr uint32_t kTokenBlock = 0;
constexpr uint32_t kAcceptanceBlock = 1;

// The streams of a Glauber step (all of them: ggm_kernels/randomness.py). Token v of a race takes word v & 3 of
// vocabulary block v >> 2, group n of it word n & 3 of block n >> 2 of a stream of its own. Of block 0 of the keep
// stream, word 0 decides to keep, word 1 takes a side of a mixture, words 2 and 3 draw its noise. The position block
// is the position.
constexpr uint32_t kRaceStream = 1;
constexpr uint32_t kKeepStream = 2;
constexpr uint32_t kGroupStream = 10;
// Noise of the positions that commit leaves over, words as in a corrupting stream.
constexpr uint32_t kCommitStream = 13;

GGM_HD uint32_t counter_word0(uint32_t stream, uint64_t sample_id, uint32_t vocab_block) {
  const uint32_t sample_high = static_cast<uint32_t>(sample_id >> 32);
  return vocab_block | stream << kVocabBlockBits | sample_high << (kVocabBlockBits + kStreamBits);
}

GGM_HD uint32_t counter_word2(uint64_t sample_id) { return static_cast<uint32_t>(sample_id); }

}  // namespace ggm
