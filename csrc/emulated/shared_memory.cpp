#include "emulated/shared_memory.h"

#include <cstddef>
#include <cstdint>
#if defined(GGM_TSAN)
#include <sys/mman.h>
#endif

// Of shared_memory.ld.
extern "C" {
extern char ggm_shared_begin[] __attribute__((visibility("hidden")));
extern char ggm_shared_end[] __attribute__((visibility("hidden")));
}

namespace emulated {

void spoil_shared_memory() {
  const size_t bytes = static_cast<size_t>(ggm_shared_end - ggm_shared_begin);
  if (bytes == 0) return;
#if defined(GGM_TSAN)
  // New pages: to ThreadSanitizer, what other blocks did at these addresses was elsewhere.
  mmap(ggm_shared_begin, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#endif
  // No two neighbours alike; as integers large, as floats large and of one sign, of either in turn.
  static bool is_negative = false;
  is_negative = !is_negative;
  const uint64_t pattern = is_negative ? 0xD7D6D5D4D3D2D1D0u : 0x6766656463626160u;
  uint64_t* words = reinterpret_cast<uint64_t*>(ggm_shared_begin);
  for (size_t i = 0; i < bytes / sizeof *words; ++i) words[i] = pattern ^ i << 3;
}

}  // namespace emulated
