// The 16-bit floats as bits, and what they convert to where there are no instructions for it.
#pragma once

#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "numerics/host_device.h"

namespace ggm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

GGM_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

GGM_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GGM_HD float to_float(float value) { return value; }

GGM_HD float to_float(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// Exponent and mantissa move to their places in float32, and the exponent is rebased. Subnormals are the low bits of 1/2
// and more, less that: no float32 on the way is subnormal, for a processor may be told to take such for 0.
GGM_HD float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7FFFu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t subnormal = float_bits(float_of(magnitude | 0x3F000000u) - 0.5f);
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7C00u ? 0x70000000u : 0x38000000u);
  return float_of((magnitude < 0x400u ? subnormal : normal) | sign);
#endif
}

GGM_HD void round_to(float value, float& rounded) { rounded = value; }

// To nearest, ties to even; NaN stays NaN.
GGM_HD void round_to(float value, BFloat16& rounded) {
  const uint32_t bits = float_bits(value);
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const uint32_t nearest = bits + 0x7FFFu + (bits >> 16 & 1u);
  rounded.bits = static_cast<uint16_t>((is_nan ? bits | 0x400000u : nearest) >> 16);
}

GGM_HD void round_to(float value, Float16& rounded) {
  const uint32_t sign = float_bits(value) >> 16 & 0x8000u;
  const uint32_t magnitude = float_bits(value) & 0x7FFFFFFFu;
  uint32_t nearest;
  if (magnitude > 0x7F800000u) {
    nearest = 0x7E00u;  // NaN
  } else if (magnitude >= 0x47800000u) {
    nearest = 0x7C00u;  // 2^16 and more: infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 results are multiples of 2^-24: adding 1/2 leaves those as the low bits, rounded.
    nearest = float_bits(float_of(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    nearest = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  }
  rounded.bits = static_cast<uint16_t>(sign | nearest);
}

}  // namespace ggm
