// Whether every value of a step's arguments is in range, seen before anything is written.
#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/simd.h"
#include "numerics/counter.h"

namespace ggm::cpu::GGM_ISA {
namespace {

template <class T>
bool tokens_in_range(const GlauberArgs& args) {
  const uint64_t vocab_size = static_cast<uint64_t>(args.vocab_size);
  const T* tokens = static_cast<const T*>(args.tokens);
  bool valid = true;
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    const T* row = tokens + sequence * args.token_row_stride;
    if (args.token_stride == 1) {  // its own loop: vectors
      for (int64_t i = 0; i < args.length; ++i) valid &= static_cast<uint64_t>(static_cast<int64_t>(row[i])) < vocab_size;
    } else {
      for (int64_t i = 0; i < args.length; ++i) {
        valid &= static_cast<uint64_t>(static_cast<int64_t>(row[i * args.token_stride])) < vocab_size;
      }
    }
  }
  return valid;
}

// A bit per position of a sequence.
struct Seen {
  uint8_t* bits;
  explicit Seen(int64_t length) : bits(static_cast<uint8_t*>(std::calloc(static_cast<size_t>(length / 8 + 1), 1))) {}
  ~Seen() { std::free(bits); }
  Seen(const Seen&) = delete;
  Seen& operator=(const Seen&) = delete;
};

// `count` positions, each inside and none twice; leaves `seen` as it was unless they are not.
bool positions_valid(const int64_t* positions, int64_t count, int64_t length, uint8_t* seen) {
  for (int64_t k = 0; k < count; ++k) {
    const int64_t position = positions[k];
    if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(length)) return false;
    const uint8_t bit = static_cast<uint8_t>(1u << (position & 7));
    if ((seen[position >> 3] & bit) != 0) return false;
    seen[position >> 3] = static_cast<uint8_t>(seen[position >> 3] | bit);
  }
  for (int64_t k = 0; k < count; ++k) seen[positions[k] >> 3] = 0;
  return true;
}

bool all_positions_valid(const GlauberArgs& args) {
  const Seen seen(args.length);
  const int64_t lists = args.position_row_stride == 0 ? 1 : args.batch;
  for (int64_t list = 0; list < lists; ++list) {
    if (!positions_valid(args.positions + list * args.position_row_stride, args.count, args.length, seen.bits)) {
      return false;
    }
  }
  return true;
}

bool noise_rates_valid(const GlauberArgs& args) {
  if (args.noise_rate == nullptr) return true;
  bool valid = true;
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    const float* rates = args.noise_rate + sequence * args.noise_row_stride;
    const int64_t count = args.noise_stride == 0 && args.count > 0 ? 1 : args.count;
    for (int64_t k = 0; k < count; ++k) {
      const float rate = rates[k * args.noise_stride];
      valid &= rate >= 0.0f && rate <= 1.0f;
    }
  }
  return valid;
}

bool coordinates_valid(const GlauberArgs& args) {
  bool valid = static_cast<uint64_t>(args.step) < uint64_t{1} << kStepBits;
  if (args.sample_ids != nullptr) {
    for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
      valid &= static_cast<uint64_t>(args.sample_ids[sequence]) < uint64_t{1} << kSampleIdBits;
    }
  }
  return valid;
}

}  // namespace

bool glauber_check(const GlauberArgs& args) {
  return coordinates_valid(args) && noise_rates_valid(args) && all_positions_valid(args) &&
         (args.token_bytes == 8 ? tokens_in_range<int64_t>(args) : tokens_in_range<int32_t>(args));
}

}  // namespace ggm::cpu::GGM_ISA
