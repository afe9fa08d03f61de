// Vectors of floats, loaded from and stored to float32, bfloat16 and float16.
#pragma once

#include "cpu/simd.h"
#include "numerics/half.h"

namespace ggm {

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));  // of comparisons: -1 or 0 a lane
typedef uint16_t HalfWords __attribute__((vector_size(2 * kLanes)));

GGM_HD Floats load(const float* from) {
  Floats lanes;
  memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

GGM_HD Floats load(const BFloat16* from) {
  HalfWords bits;
  memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

GGM_HD Floats load(const Float16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Floats lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = to_float(from[lane]);
  return lanes;
#endif
}

GGM_HD int lanes_for(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// `many` of them; lanes beyond hold `filling`.
template <class T>
GGM_HD Floats load_some(const T* from, int many, float filling = 0.0f) {
  if (many == kLanes) return load(from);
  Floats lanes = Floats{} + filling;
  for (int lane = 0; lane < many; ++lane) lanes[lane] = to_float(from[lane]);
  return lanes;
}

GGM_HD Floats load_some(const float* from, int many, float filling = 0.0f) {
  if (many == kLanes) return load(from);
  Floats lanes = Floats{} + filling;
  memcpy(&lanes, from, sizeof(float) * static_cast<size_t>(many));
  return lanes;
}

template <class T>
GGM_HD void store_some(T* to, Floats values, int many) {
  for (int lane = 0; lane < many; ++lane) round_to(values[lane], to[lane]);
}

GGM_HD void store_some(float* to, Floats values, int many) {
  memcpy(to, &values, many == kLanes ? sizeof values : sizeof(float) * static_cast<size_t>(many));
}

// One number in all lanes, from memory in one instruction: GCC 12 makes two of Floats{} + *from.
GGM_HD Floats load_to_all(const float* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(*from);
#elif defined(__AVX2__)
  return (Floats)_mm256_broadcast_ss(from);
#else
  return Floats{} + *from;
#endif
}

#if defined(__FMA__) || defined(__AVX512F__)
#define GGM_FUSES
#endif

// Fused where the instruction set has it: without, the sum rounds twice, which float32 accumulation allows.
GGM_HD Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

GGM_HD Floats float_of_int(Words words) { return __builtin_convertvector((Mask)words, Floats); }
GGM_HD Words float_bits(Floats values) { return (Words)values; }

GGM_HD bool any(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t lanes = 0;
  for (int lane = 0; lane < kLanes; ++lane) lanes |= mask[lane];
  return lanes != 0;
#endif
}

// A bit per lane.
GGM_HD uint32_t lane_bits(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (mask[lane] != 0 ? 1u : 0u) << lane;
  return bits;
#endif
}

// NaN in `value` is passed over.
GGM_HD Floats larger(Floats value, Floats than) { return value > than ? value : than; }

GGM_HD float largest_lane(Floats lanes) {
  float largest = lanes[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
  return largest;
}

#if defined(__AVX512DQ__)
// GCC 12 takes the intrinsics that reduce a whole vector, and unmasked extraction, for uses of uninitialised values.
template <int kHalf>
GGM_HD __m256 half_of(Floats lanes) {
  return _mm512_maskz_extractf32x8_ps(0xFF, (__m512)lanes, kHalf);
}
#endif

// The same by halves, for vectors that wait for it.
GGM_HD float tree_largest(Floats lanes) {
#if defined(__AVX512DQ__)
  const __m256 eight = _mm256_max_ps(half_of<1>(lanes), half_of<0>(lanes));
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return two[0] > two[1] ? two[0] : two[1];
#else
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int lane = 0; lane < distance; ++lane) {
      lanes[lane] = lanes[lane + distance] > lanes[lane] ? lanes[lane + distance] : lanes[lane];
    }
  }
  return lanes[0];
#endif
}

GGM_HD float tree_sum(Floats lanes) {
#if defined(__AVX512DQ__)
  const __m256 eight = _mm256_add_ps(half_of<1>(lanes), half_of<0>(lanes));
  const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return two[0] + two[1];
#else
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int lane = 0; lane < distance; ++lane) lanes[lane] += lanes[lane + distance];
  }
  return lanes[0];
#endif
}

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87. x = n log 2 + r with log 2 in two parts, of which
// the first times n is exact; a minimax polynomial in r.
GGM_HD Floats exp_nonpositive(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // leaves the nearest integer in the low bits
  const Floats clamped = larger(x, Floats{} - 87.5f);
  const Floats shifted = clamped * 0x1.715476p0f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = multiply_add(n, Floats{} - 0x1.0bfbe8p-15f, multiply_add(n, Floats{} - 0x1.62ep-1f, clamped));
  Floats p = Floats{} + 0x1.6a2434p-10f;
  p = multiply_add(p, r, Floats{} + 0x1.1239e2p-7f);
  p = multiply_add(p, r, Floats{} + 0x1.5558f2p-5f);
  p = multiply_add(p, r, Floats{} + 0x1.555492p-3f);
  p = multiply_add(p, r, Floats{} + 0x1.fffffcp-2f);
  p = multiply_add(p, r * r, r + 1.0f);
  const Floats scaled = (Floats)((Words)p + (float_bits(shifted) << 23));
  return x > -87.0f ? scaled : Floats{};
}

// An exponent of 2 that is at least -125, or NaN: powers that are not normal take a hundred times as long. Where large
// powers do not become infinite by themselves, at most 126.
GGM_HD Floats normal_exponent(Floats x) {
  const Floats least = Floats{} - 125.0f;
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(0xFFFF, (__m512)least, (__m512)x);
#else
  const Floats most = Floats{} + 126.0f, normal = least > x ? least : x;
  return normal > most ? most : normal;
#endif
}

#if defined(__AVX512DQ__)
// 2^(i/32), in the two halves that one instruction looks up.
alignas(64) constexpr float kBinaryRoots[32] = {
    0x1.000000p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f, 0x1.2387a6p+0f,
    0x1.29e9e0p+0f, 0x1.306fe0p+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f, 0x1.4bfdaep+0f, 0x1.5342b6p+0f,
    0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f, 0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f,
    0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f, 0x1.ae89fap+0f, 0x1.b7f770p+0f, 0x1.c199bep+0f, 0x1.cb720ep+0f,
    0x1.d5818ep+0f, 0x1.dfc974p+0f, 0x1.ea4afap+0f, 0x1.f50766p+0f};

// 2^x = root * rest, for sums. The root is 2^(floor(32 x) / 32), of which scalef takes the whole part of x by itself;
// the rest, 2^f with f in [0, 1/32), is a minimax polynomial. Exactly 1 times 1 for 0.
struct Power {
  Floats root, rest;
};

GGM_HD Power power_of_2(Floats x) {
  constexpr int kAll = 0xFFFF, kDownwards = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, kLess32nds = 0x59;
  constexpr float kRound = 0x1.8p18f;  // leaves floor(32 x) in the low bits
  const __m512i index = (__m512i)_mm512_maskz_add_round_ps(kAll, (__m512)x, (__m512)(Floats{} + kRound), kDownwards);
  const __m512 root = _mm512_maskz_permutex2var_ps(kAll, _mm512_load_ps(kBinaryRoots), index,
                                                   _mm512_load_ps(kBinaryRoots + kLanes));
  const Floats f = (Floats)_mm512_maskz_reduce_ps(kAll, (__m512)x, kLess32nds);
  const Floats p = multiply_add(f, Floats{} + 0x1.f0dd6cp-3f, Floats{} + 0x1.62e154p-1f);
  return {(Floats)_mm512_maskz_scalef_ps(kAll, root, (__m512)x), multiply_add(p, f, Floats{} + 1.0f)};
}
#endif

// 2^x for sums, its share of error 2^-22 at most; x is a normal exponent.
GGM_HD Floats exp2_for_sum(Floats x) {
#if defined(__AVX512DQ__)
  const Power power = power_of_2(x);
  return power.root * power.rest;
#else
  // x = n + f; a minimax polynomial in f.
  constexpr float kRound = 0x1.8p23f;  // leaves the nearest integer in the low bits
  const Floats shifted = x + kRound;
  const Floats n = shifted - kRound;
  const Floats f = x - n;
  Floats p = Floats{} + 0x1.5c08e6p-10f;
  p = multiply_add(p, f, Floats{} + 0x1.3d0c52p-7f);
  p = multiply_add(p, f, Floats{} + 0x1.c6b6e4p-5f);
  p = multiply_add(p, f, Floats{} + 0x1.ebf918p-3f);
  p = multiply_add(p, f, Floats{} + 0x1.62e428p-1f);
  p = multiply_add(p, f, Floats{} + 1.0f);
  const Floats scaled = (Floats)((Words)p + (float_bits(shifted) << 23));
  return x == x ? scaled : x;
#endif
}

// sum + 2^x, likewise.
GGM_HD Floats add_exp2(Floats sum, Floats x) {
#if defined(__AVX512DQ__)
  const Power power = power_of_2(x);
  return multiply_add(power.root, power.rest, sum);
#else
  return sum + exp2_for_sum(x);
#endif
}

// tanh(x) within 4 units in the last place: a minimax polynomial near 0, exponentials elsewhere. NaN for NaN.
GGM_HD Floats tanh_of(Floats x) {
  const Floats size = x < 0.0f ? -x : x, square = x * x;
  Floats p = Floats{} + 0x1.224a64p-9f;
  p = multiply_add(p, square, Floats{} - 0x1.0f10bcp-7f);
  p = multiply_add(p, square, Floats{} + 0x1.6449bep-6f);
  p = multiply_add(p, square, Floats{} - 0x1.ba02a0p-5f);
  p = multiply_add(p, square, Floats{} + 0x1.1110d8p-3f);
  p = multiply_add(p, square, Floats{} - 0x1.555556p-2f);
  const Floats near = multiply_add(p * square, x, x);
  const Mask is_near = size < 0.65f;
  if (!any(~is_near)) return near;  // logits under a cap, as a rule
  const Floats e = exp_nonpositive(size * -2.0f);
  const Floats far = 1.0f - (e + e) / (1.0f + e);  // rounded once: below 1 as long as tanh is
  const Floats value = is_near ? near : (x < 0.0f ? -far : far);
  return x == x ? value : x;
}

// exp(-|x|); NaN stays NaN.
GGM_HD Floats exp_minus_abs(Floats x) {
  const Floats negative = x < 0.0f ? x : -x;
  return negative == negative ? exp_nonpositive(negative) : negative;
}

// log(1 + e) for e in [0, 1], within 3 units in the last place, also where e is tiny: e times a polynomial, Chebyshev's
// of log(1 + e) / e.
GGM_HD Floats log1p_unit(Floats e) {
  Floats p = Floats{} - 0x1.9eb634p-9f;
  p = multiply_add(p, e, Floats{} + 0x1.3f4948p-6f);
  p = multiply_add(p, e, Floats{} - 0x1.ccf5c0p-5f);
  p = multiply_add(p, e, Floats{} + 0x1.af6dfep-4f);
  p = multiply_add(p, e, Floats{} - 0x1.389784p-3f);
  p = multiply_add(p, e, Floats{} + 0x1.92a85cp-3f);
  p = multiply_add(p, e, Floats{} - 0x1.fefffap-3f);
  p = multiply_add(p, e, Floats{} + 0x1.554bb8p-2f);
  p = multiply_add(p, e, Floats{} - 0x1.ffffb6p-2f);
  return e * multiply_add(p, e, Floats{} + 1.0f);
}

GGM_HD float sum(Floats lanes) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
  return total;
}

constexpr int64_t kLineBytes = 64;

// Asks for the cache lines of row[begin .. end), into the second level: they are for later. Null asks for nothing.
template <class T>
GGM_HD void prefetch(const T* row, int64_t begin, int64_t end) {
  constexpr int64_t step = kLineBytes / sizeof(T);
  if (row == nullptr) return;
  for (int64_t i = begin; i < end; i += step) __builtin_prefetch(row + i, 0, 2);
}

// Dot product in float32: four chains of sums, so that additions do not wait for each other.
template <class T>
GGM_HD float dot(const T* a, const T* b, int64_t size) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int chain = 0; chain < 4; ++chain) {
      sums[chain] = multiply_add(load(a + i + chain * kLanes), load(b + i + chain * kLanes), sums[chain]);
    }
  }
  for (; i + kLanes <= size; i += kLanes) sums[0] = multiply_add(load(a + i), load(b + i), sums[0]);
  float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < size; ++i) total += to_float(a[i]) * to_float(b[i]);
  return total;
}

// Dot products of kDots pairs of rows in float32, one chain of sums each: additions do not wait for each other, and
// neither do rows that come from memory.
constexpr int kDots = 4;

template <class T>
GGM_HD void dots(const T* const a[kDots], const T* const b[kDots], int64_t size, float results[kDots]) {
  Floats sums[kDots] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int pair = 0; pair < kDots; ++pair) {
      sums[pair] = multiply_add(load(a[pair] + i), load(b[pair] + i), sums[pair]);
    }
  }
  for (int pair = 0; pair < kDots; ++pair) {
    results[pair] = sum(sums[pair]);
    for (int64_t rest = i; rest < size; ++rest) results[pair] += to_float(a[pair][rest]) * to_float(b[pair][rest]);
  }
}

// sums += scale * row. On the way it asks for `later`, a row of the same size: bit by bit, since memory answers only
// so many requests at a time.
template <class T>
GGM_HD void add_scaled(float* sums, float scale, const T* row, int64_t size, const T* later = nullptr) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    prefetch(later, i, i + kLanes);
    const Floats total = multiply_add(Floats{} + scale, load(row + i), load(sums + i));
    memcpy(sums + i, &total, sizeof total);
  }
  for (; i < size; ++i) sums[i] += scale * to_float(row[i]);
}

template <class T>
GGM_HD void store_rounded(T* to, const float* values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) round_to(values[i], to[i]);
}

}  // namespace ggm
