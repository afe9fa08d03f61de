#include "numerics/philox.h"

#include "cpu/isa.h"
#include "cpu/simd.h"

namespace ggm::cpu::GGM_ISA {

// Through the vector code, one counter in every lane in turn, so that known answers test every lane.
void philox(const PhiloxArgs& args) {
  const VectorKeys keys = vector_keys(args.seed);
  for (int64_t i = 0; i < args.count; ++i) {
    const uint32_t* counter = args.counters + 4 * i;
    const int lane = static_cast<int>(i % kLanes);
    Words c[4] = {iota(1), iota(2), iota(3), iota(4)};
    for (int word = 0; word < 4; ++word) c[word][lane] = counter[word];
    const PhiloxBlock<Words> block = philox4x32(c[0], c[1], c[2], c[3], keys);
    const Words words[4] = {block.w0, block.w1, block.w2, block.w3};
    for (int word = 0; word < 4; ++word) args.words[4 * i + word] = words[word][lane];
  }
}

}  // namespace ggm::cpu::GGM_ISA
