// Vectors of 32-bit words, as wide as the instruction set that this file is compiled for.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE4_1__)
#include <smmintrin.h>
#endif

#include "numerics/philox.h"

namespace ggm {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint64_t WideWords __attribute__((vector_size(4 * kLanes)));  // every other word, zero-extended

// Products of the even words of x with a constant, 64 bits each.
GGM_HD WideWords multiply_even(WideWords x, uint32_t constant) {
#if defined(__AVX512F__)
  // The masked form: GCC 12 takes the unmasked one for a use of an uninitialised value.
  return (WideWords)_mm512_maskz_mul_epu32(0xFF, (__m512i)x, _mm512_set1_epi64(constant));
#elif defined(__AVX2__)
  return (WideWords)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(constant));
#elif defined(__SSE4_1__)
  return (WideWords)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(constant));
#else
  return (x & 0xFFFFFFFFu) * constant;
#endif
}

// Even words of `even` and odd words of `odd`.
GGM_HD Words blend_even_odd(WideWords even, WideWords odd) {
#if defined(__AVX512F__)
  return (Words)_mm512_mask_blend_epi32(0xAAAA, (__m512i)even, (__m512i)odd);
#elif defined(__AVX2__)
  return (Words)_mm256_blend_epi32((__m256i)even, (__m256i)odd, 0xAA);
#elif defined(__SSE4_1__)
  return (Words)_mm_blend_epi16((__m128i)even, (__m128i)odd, 0xCC);
#else
  return (Words)((even & 0xFFFFFFFFu) | (odd & ~uint64_t{0xFFFFFFFFu}));
#endif
}

// Words with the even and the odd ones apart, each in the low half of a 64-bit lane whose high half is
// arbitrary. A widening product then needs no shuffles, and the halves are two independent chains of
// instructions, which hides the latency of the multiplications.
struct SplitWords {
  WideWords even, odd;
};

GGM_HD SplitWords split(Words words) { return {(WideWords)words, (WideWords)words >> 32}; }
GGM_HD Words join(SplitWords words) { return blend_even_odd(words.even, words.odd << 32); }
GGM_HD SplitWords operator^(SplitWords a, SplitWords b) { return {a.even ^ b.even, a.odd ^ b.odd}; }
GGM_HD SplitWords operator^(SplitWords a, WideWords b) { return {a.even ^ b, a.odd ^ b}; }

template <>
struct WideProduct<SplitWords> {
  GGM_HD void of(uint32_t constant, SplitWords word, SplitWords& high, SplitWords& low) {
    low = {multiply_even(word.even, constant), multiply_even(word.odd, constant)};
    high = {low.even >> 32, low.odd >> 32};
  }
};

// Twice as many: four chains, which is what it takes to keep the multipliers busy.
struct TwoSplit {
  SplitWords first, second;
};
GGM_HD TwoSplit operator^(TwoSplit a, TwoSplit b) { return {a.first ^ b.first, a.second ^ b.second}; }
GGM_HD TwoSplit operator^(TwoSplit a, WideWords b) { return {a.first ^ b, a.second ^ b}; }

template <>
struct WideProduct<TwoSplit> {
  GGM_HD void of(uint32_t constant, TwoSplit word, TwoSplit& high, TwoSplit& low) {
    WideProduct<SplitWords>::of(constant, word.first, high.first, low.first);
    WideProduct<SplitWords>::of(constant, word.second, high.second, low.second);
  }
};

using VectorKeys = PhiloxKeys<WideWords>;

GGM_HD VectorKeys vector_keys(uint64_t seed) {
  const PhiloxKeys<uint32_t> scalar = philox_keys(seed);
  VectorKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.k0[round] = WideWords{} + scalar.k0[round];
    keys.k1[round] = WideWords{} + scalar.k1[round];
  }
  return keys;
}

GGM_HD PhiloxBlock<Words> philox4x32(Words c0, Words c1, Words c2, Words c3, const VectorKeys& keys) {
  const PhiloxBlock<SplitWords> block = philox4x32(split(c0), split(c1), split(c2), split(c3), keys);
  return {join(block.w0), join(block.w1), join(block.w2), join(block.w3)};
}

// first, first + 1, ..
GGM_HD Words iota(uint32_t first) {
  Words lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<uint32_t>(lane);
  return lanes + first;
}

GGM_HD Words broadcast(uint32_t word) { return Words{} + word; }

// a[0], b[0], a[1], b[1], .. to memory.
GGM_HD void store_interleaved(uint32_t* out, Words a, Words b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i low = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
  const __m256i high = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + 1, _mm256_permute2x128_si256(low, high, 0x31));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    out[2 * lane] = a[lane];
    out[2 * lane + 1] = b[lane];
  }
#endif
}

// Rows of four words to columns, in every 128 bits apart.
GGM_HD void transpose_fours(Words& a, Words& b, Words& c, Words& d) {
#if defined(__AVX512F__)
  const __m512i ab_low = _mm512_maskz_unpacklo_epi32(0xFFFF, (__m512i)a, (__m512i)b);
  const __m512i ab_high = _mm512_maskz_unpackhi_epi32(0xFFFF, (__m512i)a, (__m512i)b);
  const __m512i cd_low = _mm512_maskz_unpacklo_epi32(0xFFFF, (__m512i)c, (__m512i)d);
  const __m512i cd_high = _mm512_maskz_unpackhi_epi32(0xFFFF, (__m512i)c, (__m512i)d);
  a = (Words)_mm512_maskz_unpacklo_epi64(0xFF, ab_low, cd_low);
  b = (Words)_mm512_maskz_unpackhi_epi64(0xFF, ab_low, cd_low);
  c = (Words)_mm512_maskz_unpacklo_epi64(0xFF, ab_high, cd_high);
  d = (Words)_mm512_maskz_unpackhi_epi64(0xFF, ab_high, cd_high);
#elif defined(__AVX2__)
  const __m256i ab_low = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
  const __m256i ab_high = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
  const __m256i cd_low = _mm256_unpacklo_epi32((__m256i)c, (__m256i)d);
  const __m256i cd_high = _mm256_unpackhi_epi32((__m256i)c, (__m256i)d);
  a = (Words)_mm256_unpacklo_epi64(ab_low, cd_low);
  b = (Words)_mm256_unpackhi_epi64(ab_low, cd_low);
  c = (Words)_mm256_unpacklo_epi64(ab_high, cd_high);
  d = (Words)_mm256_unpackhi_epi64(ab_high, cd_high);
#else
  const Words rows[4] = {a, b, c, d};
  for (int lane = 0; lane < kLanes; ++lane) {
    const int first = lane / 4 * 4, row = lane % 4;
    a[lane] = rows[row][first];
    b[lane] = rows[row][first + 1];
    c[lane] = rows[row][first + 2];
    d[lane] = rows[row][first + 3];
  }
#endif
}

}  // namespace ggm
