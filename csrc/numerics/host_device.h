// What lets one line of mathematics compile for scalar hosts, SIMD hosts and CUDA devices.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GGM_HD static __host__ __device__ __forceinline__
#else
// Always inlined: a header compiled for several instruction sets must leave no symbol that the linker
// could share between them.
#define GGM_HD static inline __attribute__((always_inline))
#endif
