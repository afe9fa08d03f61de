// Chooses, at run time, among the instruction sets that the other files of this folder were compiled for.
#include <cstring>

#include "cpu/isa.h"

namespace ggm::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*supported)();
  bool (*corrupt)(const CorruptArgs&, int);
  void (*philox)(const PhiloxArgs&);
};

#if defined(__x86_64__)
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
bool has_v2() { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }
#endif

const Isa kBuilt[] = {
#if defined(GGM_HAVE_ISA_v4)
    {"v4", has_v4, v4::corrupt, v4::philox},
#endif
#if defined(GGM_HAVE_ISA_v3)
    {"v3", has_v3, v3::corrupt, v3::philox},
#endif
#if defined(GGM_HAVE_ISA_v2)
    {"v2", has_v2, v2::corrupt, v2::philox},
#endif
#if defined(GGM_HAVE_ISA_plain)
    {"plain", [] { return true; }, plain::corrupt, plain::philox},
#endif
};


const Isa* nth_supported(int index) {
  for (const Isa& isa : kBuilt) {
    if (isa.supported() && index-- == 0) return &isa;
  }
  return nullptr;
}

const Isa* in_use = nth_supported(0);

}  // namespace

bool corrupt(const CorruptArgs& args, int threads) { return in_use->corrupt(args, threads); }
void philox(const PhiloxArgs& args) { in_use->philox(args); }

int isa_count() {
  int count = 0;
  while (nth_supported(count) != nullptr) ++count;
  return count;
}

const char* isa_name(int index) { return nth_supported(index)->name; }

const char* isa() { return in_use == nullptr ? nullptr : in_use->name; }

bool select_isa(const char* name) {
  for (const Isa& isa : kBuilt) {
    if (std::strcmp(isa.name, name) == 0 && isa.supported()) {
      in_use = &isa;
      return true;
    }
  }
  return false;
}

}  // namespace ggm::cpu
