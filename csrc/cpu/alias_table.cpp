// Walker's alias table in the construction of Vose (1991), as in ggm_kernels/reference/alias_table.py.
#include "cpu/isa.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr uint32_t kAcceptAll = 0xFFFFFFFFu;

GGM_HD uint32_t threshold_of(double share) {
  const uint64_t words = static_cast<uint64_t>(share * 0x1p32);
  return words < kAcceptAll ? static_cast<uint32_t>(words) : kAcceptAll;
}

}  // namespace

void alias_table(double* scaled, AliasRow* table, uint32_t* stacks, int64_t vocab_size) {
  // Two stacks that share one array: tokens below 1 grow from its front, the others from its back.
  int64_t small = 0, large = vocab_size;
  for (int64_t token = 0; token < vocab_size; ++token) {
    table[token] = {kAcceptAll, static_cast<uint32_t>(token)};
    // On both, and one of them grows: a branch would be mispredicted every other time.
    const bool is_small = scaled[token] < 1.0;
    stacks[small] = stacks[large - 1] = static_cast<uint32_t>(token);
    small += is_small;
    large -= !is_small;
  }
  while (small > 0 && large < vocab_size) {
    const uint32_t under = stacks[--small], over = stacks[large];
    table[under] = {threshold_of(scaled[under]), over};
    scaled[over] -= 1.0 - scaled[under];
    if (scaled[over] < 1.0) {
      ++large;
      stacks[small++] = over;
    }
  }
}

}  // namespace ggm::cpu::GGM_ISA
