// Device code that is compiled with ThreadSanitizer's instrumentation, and linked without its runtime, calls these
// functions for each access to memory that may not be a register.
#include "emulated/sectors.h"

#include "emulated/emulator.h"

extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace emulated {

bool is_of_module(const void* at) { return at >= __ehdr_start && at < _end; }

}  // namespace emulated

#if defined(GGM_COUNTS_ACCESSES)
#define GGM_EXPORT __attribute__((visibility("hidden")))
#define GGM_ACCESSES(bytes)                                                                             \
  GGM_EXPORT void __tsan_read##bytes(void* at) { emulated::count_access(at, bytes, false); }            \
  GGM_EXPORT void __tsan_write##bytes(void* at) { emulated::count_access(at, bytes, true); }            \
  GGM_EXPORT void __tsan_unaligned_read##bytes(void* at) { emulated::count_access(at, bytes, false); }  \
  GGM_EXPORT void __tsan_unaligned_write##bytes(void* at) { emulated::count_access(at, bytes, true); }
#define GGM_ATOMICS(bits, Word)                                                            \
  GGM_EXPORT Word __tsan_atomic##bits##_fetch_add(volatile Word* at, Word value, int) {    \
    emulated::count_access(const_cast<Word*>(at), sizeof value, true);                     \
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);                                \
  }                                                                                        \
  GGM_EXPORT Word __tsan_atomic##bits##_load(const volatile Word* at, int) {               \
    emulated::count_access(const_cast<const Word*>(at), sizeof *at, false);                \
    return __atomic_load_n(at, __ATOMIC_RELAXED);                                          \
  }                                                                                        \
  GGM_EXPORT void __tsan_atomic##bits##_store(volatile Word* at, Word value, int) {        \
    emulated::count_access(const_cast<Word*>(at), sizeof value, true);                     \
    __atomic_store_n(at, value, __ATOMIC_RELAXED);                                         \
  }

extern "C" {
GGM_EXPORT void __tsan_init() {}
GGM_EXPORT void __tsan_func_entry(void*) {}
GGM_EXPORT void __tsan_func_exit(void*) {}
GGM_EXPORT void __tsan_vptr_update(void**, void*) {}
GGM_EXPORT void __tsan_read_range(void* at, size_t bytes) { emulated::count_access(at, bytes, false); }
GGM_EXPORT void __tsan_write_range(void* at, size_t bytes) { emulated::count_access(at, bytes, true); }
GGM_ACCESSES(1)
GGM_ACCESSES(2)
GGM_ACCESSES(4)
GGM_ACCESSES(8)
GGM_ACCESSES(16)
GGM_ATOMICS(32, uint32_t)
GGM_ATOMICS(64, uint64_t)
}
#endif
