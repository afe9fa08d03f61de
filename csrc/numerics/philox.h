// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "numerics/host_device.h"

namespace ggm {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// 32 x 32 -> 64 bit product by a constant, as two words. cpu/simd.h specialises it for vectors.
template <class Word>
struct WideProduct;

template <>
struct WideProduct<uint32_t> {
  GGM_HD void of(uint32_t constant, uint32_t word, uint32_t& high, uint32_t& low) {
    const uint64_t product = static_cast<uint64_t>(constant) * word;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
  }
};

template <class Word>
struct PhiloxBlock {
  Word w0, w1, w2, w3;
};

// The keys of all rounds. Loops over vectors keep them in memory, as broadcast operands.
template <class Key>
struct PhiloxKeys {
  Key k0[kPhiloxRounds], k1[kPhiloxRounds];
};

GGM_HD PhiloxKeys<uint32_t> philox_keys(uint64_t seed) {
  PhiloxKeys<uint32_t> keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.k0[round] = static_cast<uint32_t>(seed) + static_cast<uint32_t>(round) * kPhiloxWeyl0;
    keys.k1[round] = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(round) * kPhiloxWeyl1;
  }
  return keys;
}

// Four random words of the counter (c0, c1, c2, c3). Word is uint32_t, or many of them (cpu/simd.h).
template <class Word, class Key>
GGM_HD PhiloxBlock<Word> philox4x32(Word c0, Word c1, Word c2, Word c3, const PhiloxKeys<Key>& keys) {
#if !defined(__CUDACC__)  // nvcc unrolls without being asked, and knows another spelling
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    Word high0, low0, high1, low1;
    WideProduct<Word>::of(kPhiloxMultiplier0, c0, high0, low0);
    WideProduct<Word>::of(kPhiloxMultiplier1, c2, high1, low1);
    c0 = high1 ^ c1 ^ keys.k0[round];
    c1 = low1;
    c2 = high0 ^ c3 ^ keys.k1[round];
    c3 = low0;
  }
  return {c0, c1, c2, c3};
}

}  // namespace ggm
