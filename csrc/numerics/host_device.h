// What lets one line of mathematics compile for scalar hosts, SIMD hosts and CUDA devices.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GGM_HD static __host__ __device__ __forceinline__
#define GGM_HD_MEMBER __host__ __device__ __forceinline__

// What CUDA has no name for. csrc/emulated/device.h has a stand-in of each intrinsic that a __CUDA_ARCH__ branch uses.
#if defined(__CUDA_ARCH__)
static __device__ __forceinline__ float max_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// 2^x, to 2 ulp.
static __device__ __forceinline__ float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
#endif
#else
// Always inlined: a header compiled for several instruction sets must leave no symbol that the linker
// could share between them.
#define GGM_HD static inline __attribute__((always_inline))
#define GGM_HD_MEMBER inline __attribute__((always_inline))
#endif
