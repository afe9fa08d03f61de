// Relaxed atomic loads and stores of shared memory: no word is torn, and no order is promised. In PTX, for the C++ names
// ask for a newer compiler than the rest.
#pragma once

#include "cuda/launch.h"

namespace ggm::cuda {

__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* shared) {
#if defined(GGM_ON_HOST)
  return __atomic_load_n(shared, __ATOMIC_RELAXED);
#else
  unsigned long long value;
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("ld.relaxed.cta.shared.u64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
  return value;
#endif
}

__device__ __forceinline__ void store_relaxed(unsigned long long* shared, unsigned long long value) {
#if defined(GGM_ON_HOST)
  __atomic_store_n(shared, value, __ATOMIC_RELAXED);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("st.relaxed.cta.shared.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
#endif
}

}  // namespace ggm::cuda
