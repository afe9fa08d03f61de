// What csrc/cuda needs of CUDA, for a host's compiler: qualifiers, built-in variables, vector types, intrinsics, warp
// operations and a few calls of the runtime. Stand-ins compute what CUDA's documentation says; those of approximate
// instructions are about as exact, not equal to the bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulated/emulator.h"

#define __host__
#define __device__
#define __global__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time. The linker gathers these variables (shared_memory.ld), and every block finds garbage in them.
#define __shared__ static

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(2) uchar2 {
  unsigned char x, y;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }

// Loads and stores with a hint for the cache.
template <class T>
inline T __ldg(const T* from) {
  T value;
  memcpy(&value, from, sizeof value);  // which may be of another type
  return value;
}
template <class T>
inline T __ldcs(const T* from) {
  return *from;
}
template <class T>
inline void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
inline void __stcs(T* to, T value) {
  *to = value;
}

template <class T>
inline T atomicAdd(T* at, T value) {
  emulated::count_atomic();
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated::barrier({file, line});
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated::meet(emulated::WarpOperation::sync, mask, 0, {file, line});
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::shuffle, mask, emulated::to_bits(value), {file, line});
  const int segment = lanes.lane / width * width;
  return emulated::from_bits<T>(lanes.of(segment + lane % width));
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, const char* file = __builtin_FILE(),
                        int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::shuffle_up, mask, emulated::to_bits(value), {file, line});
  const int from = lanes.lane - static_cast<int>(distance);
  return from < lanes.lane / width * width ? value : emulated::from_bits<T>(lanes.of(from));
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto lanes =
      emulated::meet(emulated::WarpOperation::shuffle_down, mask, emulated::to_bits(value), {file, line});
  const int from = lanes.lane + static_cast<int>(distance);
  return from >= (lanes.lane / width + 1) * width ? value : emulated::from_bits<T>(lanes.of(from));
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::shuffle_xor, mask, emulated::to_bits(value), {file, line});
  const int from = lanes.lane ^ lane_mask;
  return from >= (lanes.lane / width + 1) * width ? value : emulated::from_bits<T>(lanes.of(from));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::ballot, mask, predicate != 0, {file, line});
  unsigned set = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0 && lanes.of(lane) != 0) set |= 1u << lane;
  }
  return set;
}

inline int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::any, mask, predicate != 0, {file, line});
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any |= (mask >> lane & 1u) != 0 && lanes.of(lane) != 0;
  if (lanes.lane == __ffs(static_cast<int>(mask)) - 1) emulated::count_vote(any);
  return any;
}

inline int __all_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto lanes = emulated::meet(emulated::WarpOperation::all, mask, predicate != 0, {file, line});
  bool all = true;
  for (int lane = 0; lane < 32; ++lane) all &= (mask >> lane & 1u) == 0 || lanes.of(lane) != 0;
  return all;
}

// Of __CUDA_ARCH__ branches, which run where the build defines it.
struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = (value.bits & 0x8000u) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * ldexpf(static_cast<float>(fraction), -24);
  return sign * ldexpf(static_cast<float>(1024 + fraction), exponent - 25);
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float max_nan(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }
inline float fast_exp2(float x) {
  emulated::count_exponential();
  return ::exp2f(x);
}
inline float __expf(float value) {
  emulated::count_exponential();
  return ::exp2f(value * 1.44269504f);
}

// What a kernel spends its instructions on is counted: these hide the functions of the same names.
namespace ggm {
inline float logf(float value) {
  emulated::count_logarithm();
  return ::logf(value);
}
inline float log1pf(float value) {
  emulated::count_logarithm();
  return ::log1pf(value);
}
inline float expf(float value) {
  emulated::count_exponential();
  return ::expf(value);
}
inline float exp2f(float value) {
  emulated::count_exponential();
  return ::exp2f(value);
}
}  // namespace ggm

enum cudaError_t { cudaSuccess = 0 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = struct EmulatedStream*;
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulated::settings().processors, cudaSuccess;
}
