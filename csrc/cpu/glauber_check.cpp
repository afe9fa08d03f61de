// Whether every value of a step's arguments is in range, seen before anything is written.
#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/simd.h"
#include "numerics/counter.h"

namespace ggm::cpu::GGM_ISA {
namespace {

// Tokens that stand where they are read, of rows with a position that is not frozen.
bool tokens_in_range(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  if (args.noise_rate == nullptr && options.logit_shift.values == nullptr) return true;
  const uint64_t bound = static_cast<uint64_t>(options.token_bound > 0 ? options.token_bound : args.vocab_size);
  bool valid = true;
  for (int64_t row = 0; row < args.batch * args.count; ++row) {
    const int64_t sequence = row / args.count;
    const int64_t position = args.positions[sequence * args.position_row_stride + row % args.count];
    if (position < 0 || (args.frozen != nullptr && args.frozen[sequence * args.length + position] != 0)) continue;
    const int64_t at = sequence * args.token_row_stride + position * args.token_stride;
    const int64_t token = args.token_bytes == 8 ? static_cast<const int64_t*>(args.tokens)[at]
                                                : static_cast<const int32_t*>(args.tokens)[at];
    valid &= static_cast<uint64_t>(token) < bound;
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

// `count` positions, each inside and none twice; leaves `seen` as it was unless they are not. -1 is none where rows
// may be absent.
bool positions_valid(const int64_t* positions, int64_t count, int64_t length, bool may_be_absent, uint8_t* seen) {
  for (int64_t k = 0; k < count; ++k) {
    const int64_t position = positions[k];
    if (may_be_absent && position == -1) continue;
    if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(length)) return false;
    const uint8_t bit = static_cast<uint8_t>(1u << (position & 7));
    if ((seen[position >> 3] & bit) != 0) return false;
    seen[position >> 3] = static_cast<uint8_t>(seen[position >> 3] | bit);
  }
  for (int64_t k = 0; k < count; ++k) {
    if (positions[k] >= 0) seen[positions[k] >> 3] = 0;
  }
  return true;
}

bool all_positions_valid(const GlauberArgs& args) {
  const Seen seen(args.length);
  const bool own = args.position_row_stride != 0;
  for (int64_t list = 0; list < (own ? args.batch : 1); ++list) {
    const int64_t* positions = args.positions + list * args.position_row_stride;
    if (!positions_valid(positions, args.count, args.length, own, seen.bits)) return false;
  }
  return true;
}

// Whether every value of a row, where there is one, is in range: NaN is in none.
template <class T, class Range>
bool all_in(const GlauberArgs& args, const RowValues<T>& given, const Range& range) {
  if (given.values == nullptr) return true;
  bool valid = true;
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    const T* values = given.values + sequence * given.sequence_stride;
    const int64_t count = given.stride == 0 ? (args.count > 0 ? 1 : 0) : args.count;
    for (int64_t k = 0; k < count; ++k) valid &= range(values[k * given.stride]);
  }
  return valid;
}

bool row_values_valid(const GlauberArgs& args) {
  const RowOptions& options = args.options;
  const auto is_probability = [](float p) { return p >= 0.0f && p <= 1.0f; };
  const RowValues<float> noise_rate = {args.noise_rate, args.noise_row_stride, args.noise_stride};
  return all_in(args, noise_rate, is_probability) && all_in(args, options.mixture, is_probability) &&
         all_in(args, options.min_p, is_probability) &&
         all_in(args, options.top_p, [](float p) { return p > 0.0f && p <= 1.0f; }) &&
         all_in(args, options.top_k, [](int64_t k) { return k >= 1; }) &&
         all_in(args, options.temperature, [](float t) { return t >= 0.0f && t < float_of(0x7F800000u); });
}

bool is_step(int64_t step) { return static_cast<uint64_t>(step) < uint64_t{1} << kStepBits; }

bool coordinates_valid(const GlauberArgs& args) {
  bool valid = is_step(args.step) && all_in(args, args.options.step, is_step);
  if (args.sample_ids != nullptr) {
    for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
      valid &= static_cast<uint64_t>(args.sample_ids[sequence]) < uint64_t{1} << kSampleIdBits;
    }
  }
  return valid;
}

}  // namespace

bool glauber_check(const GlauberArgs& args) {
  return coordinates_valid(args) && row_values_valid(args) && all_positions_valid(args) && tokens_in_range(args);
}

}  // namespace ggm::cpu::GGM_ISA
