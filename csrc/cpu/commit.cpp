#include "numerics/commit.h"

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/noise_words.h"
#include "cpu/parallel.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 8192;  // fewer positions are done before a second thread has woken
constexpr int kDigits = 256;

template <class T>
GGM_HD T of_row(const PerRow<T>& limit, int64_t row) {
  return limit.values == nullptr ? limit.value : limit.values[row * limit.stride];
}

GGM_HD int64_t sample_id_of(const CommitArgs& args, int64_t row) {
  return args.sample_ids == nullptr ? row : args.sample_ids[row];
}

bool is_valid(const CommitArgs& args) {
  if (static_cast<uint64_t>(args.step) >> kStepBits != 0) return false;
  bool valid = true;
  for (int64_t row = 0; row < args.batch; ++row) {
    const float threshold = of_row(args.threshold, row);
    valid &= of_row(args.count, row) >= 0 && threshold == threshold;
    valid &= !args.has_budget || of_row(args.budget, row) >= 0.0f;
    valid &= static_cast<uint64_t>(sample_id_of(args, row)) >> kSampleIdBits == 0;
  }
  return valid;
}

// Of one row: a key for every position, and room for those that are still in question.
struct Keys {
  uint32_t* all;
  uint32_t* open;
  explicit Keys(int64_t length)
      : all(static_cast<uint32_t*>(std::malloc(2 * sizeof(uint32_t) * static_cast<size_t>(length + 1)))),
        open(all + length) {}
  ~Keys() { std::free(all); }
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;
};

template <class T>
void fill_keys(const CommitArgs& args, int64_t row, uint32_t* keys) {
  const T* scores = static_cast<const T*>(args.score.data) + row * args.score.row_stride;
  const float threshold = of_row(args.threshold, row);
  if (args.eligible.data == nullptr) {
    for (int64_t i = 0; i < args.length; ++i) {
      keys[i] = candidate_key(to_float(scores[i * args.score.stride]), true, threshold);
    }
    return;
  }
  const uint8_t* eligible = args.eligible.data + row * args.eligible.row_stride;
  for (int64_t i = 0; i < args.length; ++i) {
    keys[i] = candidate_key(to_float(scores[i * args.score.stride]), eligible[i * args.eligible.stride] != 0, threshold);
  }
}

void fill_keys(const CommitArgs& args, int64_t row, uint32_t* keys) {
  switch (args.dtype) {
    case Float::bfloat16:
      return fill_keys<BFloat16>(args, row, keys);
    case Float::float16:
      return fill_keys<Float16>(args, row, keys);
    default:
      return fill_keys<float>(args, row, keys);
  }
}

// Scores above the key are accepted, and so many of those equal to it, first positions first.
struct End {
  uint32_t key;
  int64_t equals;
};

GGM_HD int64_t gather_candidates(const Keys& keys, int64_t length) {
  int64_t count = 0;
  for (int64_t i = 0; i < length; ++i) {
    keys.open[count] = keys.all[i];
    count += keys.all[i] != kNoCandidate;
  }
  return count;
}

GGM_HD double row_scale(const uint32_t* keys, int64_t count, int64_t length) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = magnitude_bits(keys[i]);
    largest = bits > largest ? bits : largest;
  }
  return cost_scale(largest, length);
}

// One digit of the end: the last one with candidates at which the order is still open. `before` moves up to it, and
// keys of other digits go; how many stay is returned.
int64_t choose_digit(uint32_t* keys, int64_t count, int shift, double scale, const Limits& limits, Prefix& before) {
  uint32_t counts[kDigits] = {};
  int64_t units[kDigits] = {};
  for (int64_t i = 0; i < count; ++i) ++counts[keys[i] >> shift & (kDigits - 1)];
  if (limits.has_budget) {
    for (int64_t i = 0; i < count; ++i) units[keys[i] >> shift & (kDigits - 1)] += cost_units(key_score(keys[i]), scale);
  }
  Prefix next = before;
  uint32_t digit = 0;
  for (uint32_t d = 0; d < kDigits && is_open(limits, next); ++d) {
    if (counts[d] == 0) continue;
    digit = d;
    before = next;
    next = {next.count + counts[d], next.units + units[d]};
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    keys[kept] = key;
    kept += (key >> shift & (kDigits - 1)) == digit;
  }
  return kept;
}

End find_end(const CommitArgs& args, int64_t row, const Keys& keys) {
  int64_t count = gather_candidates(keys, args.length);
  Limits limits = {of_row(args.count, row), 0, args.has_budget, false};
  double scale = 0.0;
  if (args.has_budget) {
    const float budget = of_row(args.budget, row);
    scale = row_scale(keys.open, count, args.length);
    limits.budget_units = budget_units(budget, scale);
    limits.is_unbounded = !is_finite(budget);
  }
  Prefix before = {0, 0};
  if (count == 0 || !is_open(limits, before)) return {0, 0};
  if (limits.count >= count && !args.has_budget) return {kNoCandidate, 0};
  for (int shift = 24; shift >= 0; shift -= 8) count = choose_digit(keys.open, count, shift, scale, limits, before);
  const float score = key_score(keys.open[0]);
  return {keys.open[0], equals_accepted(limits, before, score, cost_units(score, scale))};
}

// Puts 1 in the place of the key of every position that is accepted, 0 elsewhere.
GGM_HD void mark_accepted(uint32_t* keys, int64_t length, End end) {
  int64_t equals = 0;
  for (int64_t i = 0; i < length; ++i) {
    const bool is_equal = keys[i] == end.key;
    keys[i] = keys[i] < end.key || (is_equal && equals < end.equals);
    equals += is_equal;
  }
}

template <class Token, class Proposal>
void take_proposals(const CommitArgs& args, int64_t row, const uint32_t* is_accepted) {
  Token* tokens = static_cast<Token*>(args.tokens.data) + row * args.tokens.row_stride;
  const Proposal* proposal = static_cast<const Proposal*>(args.proposal.data) + row * args.proposal.row_stride;
  for (int64_t i = 0; i < args.length; ++i) {
    if (is_accepted[i]) tokens[i * args.tokens.stride] = static_cast<Token>(proposal[i * args.proposal.stride]);
  }
}

template <class Token>
void take_noise(const CommitArgs& args, int64_t row, const uint32_t* is_accepted, const VectorKeys& keys) {
  TileWords words;
  const Row coordinates = {static_cast<uint64_t>(sample_id_of(args, row)), static_cast<uint32_t>(args.step),
                           kCommitStream};
  Token* tokens = static_cast<Token*>(args.tokens.data) + row * args.tokens.row_stride;
  const uint8_t* eligible = args.eligible.data == nullptr ? nullptr : args.eligible.data + row * args.eligible.row_stride;
  for (int64_t begin = 0; begin < args.length; begin += kTile) {
    const int64_t count = smaller(kTile, args.length - begin);
    fill_noise(words, coordinates, keys, args.noise, begin, count);
    for (int64_t i = begin; i < begin + count; ++i) {
      const bool is_left = !is_accepted[i] && (eligible == nullptr || eligible[i * args.eligible.stride] != 0);
      if (is_left) tokens[i * args.tokens.stride] = static_cast<Token>(words.draw[i - begin]);
    }
  }
}

template <class Token>
void write_row(const CommitArgs& args, int64_t row, const uint32_t* is_accepted, const VectorKeys& keys) {
  if (args.proposal_bytes == 8) {
    take_proposals<Token, int64_t>(args, row, is_accepted);
  } else {
    take_proposals<Token, int32_t>(args, row, is_accepted);
  }
  if (args.noises_rest) take_noise<Token>(args, row, is_accepted, keys);
  if (args.accepted.data == nullptr) return;
  uint8_t* accepted = args.accepted.data + row * args.accepted.row_stride;
  for (int64_t i = 0; i < args.length; ++i) accepted[i * args.accepted.stride] = static_cast<uint8_t>(is_accepted[i]);
}

}  // namespace

bool commit(const CommitArgs& args, int threads) {
  if (!is_valid(args)) return false;
  const VectorKeys philox = vector_keys(args.seed);
  on_threads(threads, args.batch * args.length >= kParallelFrom, [&](const Member& member) {
    const Keys keys(args.length);
    member.in_parts(args.batch, [&](int64_t row) {
      fill_keys(args, row, keys.all);
      mark_accepted(keys.all, args.length, find_end(args, row, keys));
      if (args.token_bytes == 8) {
        write_row<int64_t>(args, row, keys.all, philox);
      } else {
        write_row<int32_t>(args, row, keys.all, philox);
      }
    });
  });
  return true;
}

}  // namespace ggm::cpu::GGM_ISA
