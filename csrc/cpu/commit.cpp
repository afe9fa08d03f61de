#include "numerics/commit.h"

#include "cpu/commit_keys.h"
#include "cpu/isa.h"
#include "cpu/noise_words.h"
#include "cpu/parallel.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 8192;  // fewer positions are done before a second thread has woken

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

// One row of a matrix. Of what lies side by side the compiler knows that, and makes vectors of it.
template <class T, bool kPacked>
struct Cells {
  T* data;
  int64_t stride;
  template <class Any>
  Cells(const Matrix<Any>& matrix, int64_t row)
      : data(matrix.data == nullptr ? nullptr : static_cast<T*>(matrix.data) + row * matrix.row_stride),
        stride(matrix.stride) {}
  GGM_HD_MEMBER T& operator[](int64_t i) const { return data[kPacked ? i : i * stride]; }
};

bool is_packed(const CommitArgs& args) {
  return args.tokens.stride == 1 && args.proposal.stride == 1 && args.score.stride == 1 &&
         (args.eligible.data == nullptr || args.eligible.stride == 1) &&
         (args.accepted.data == nullptr || args.accepted.stride == 1);
}

template <class T, bool kPacked>
void fill_keys(const CommitArgs& args, int64_t row, uint32_t* keys) {
  const Cells<const T, kPacked> scores(args.score, row);
  const Cells<const uint8_t, kPacked> eligible(args.eligible, row);
  const float threshold = of_row(args.threshold, row);
  for (int64_t i = 0; i < args.length; ++i) keys[i] = candidate_key(to_float(scores[i]), true, threshold);
  end_keys(keys, args.length);
  if (eligible.data == nullptr) return;
  for (int64_t i = 0; i < args.length; ++i) keys[i] = eligible[i] != 0 ? keys[i] : kNoCandidate;
}

template <bool kPacked>
void fill_keys(const CommitArgs& args, int64_t row, uint32_t* keys) {
  switch (args.dtype) {
    case Float::bfloat16:
      return fill_keys<BFloat16, kPacked>(args, row, keys);
    case Float::float16:
      return fill_keys<Float16, kPacked>(args, row, keys);
    default:
      return fill_keys<float, kPacked>(args, row, keys);
  }
}

// Candidates before `key` in the order are accepted, and those with that key at positions before `bound`.
struct End {
  uint32_t key;
  int64_t bound;
};

Prefix up_to(const uint32_t* keys, int64_t count, uint32_t high, const CostUnit& unit, bool has_budget) {
  return {count_up_to(keys, count, high), has_budget ? units_up_to(keys, count, high, unit) : 0};
}

// The position behind the first `equals` of a key.
int64_t bound_of(const uint32_t* keys, uint32_t key, int64_t equals) {
  int64_t i = 0;
  for (; equals > 0; ++i) equals -= keys[i] == key;
  return i;
}

GGM_HD uint32_t middle_of(uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c > high ? high : c;
}

// Between `low` and `high`, high itself left out: near the middle of the keys, at first. Later it halves what keys may
// be, so that no order of them takes long.
GGM_HD uint32_t pivot_of(const uint32_t* keys, int64_t count, uint32_t low, uint32_t high, int round) {
  constexpr int kByKeys = 24;
  if (round >= kByKeys) return low + (high - low) / 2;
  const uint32_t pivot = middle_of(keys[0], keys[count / 2], keys[count - 1]);
  return pivot < low ? low : pivot < high ? pivot : high - 1;
}

// Where the order closes: of the keys on both sides of a pivot only those go on between which it does, until they are
// all one.
End find_end(const CommitArgs& args, int64_t row, const Keys& keys) {
  constexpr End kAll = {kNoCandidate, 0}, kNone = {0, 0};
  Limits limits = {of_row(args.count, row), 0, args.has_budget, false};
  if (limits.count >= args.length && !limits.has_budget) return kAll;
  CostUnit unit = {0.0, 0.0};
  if (limits.has_budget) {
    const float budget = of_row(args.budget, row);
    unit = cost_unit(largest_magnitudes(keys.all, args.length), budget, args.length);
    limits.budget_units = budget_units(budget, unit);
    limits.is_unbounded = !is_finite(budget);
  }
  Prefix before = {0, 0};
  if (!is_open(limits, before)) return kNone;
  uint32_t low = 0, high = kNoCandidate - 1;
  int64_t count = keep_between(keys.all, args.length, low, high, keys.open);
  if (count == 0) return kNone;
  if (limits.count >= count && !limits.has_budget) return kAll;
  for (int round = 0; count > 1 && low < high; ++round) {
    const uint32_t pivot = pivot_of(keys.open, count, low, high, round);
    const Prefix lower = up_to(keys.open, count, pivot, unit, limits.has_budget);
    const Prefix next = {before.count + lower.count, before.units + lower.units};
    if (lower.count < count && is_open(limits, next)) {
      before = next;
      low = pivot + 1;
    } else {
      high = pivot;
    }
    if (lower.count > 0 && lower.count < count) count = keep_between(keys.open, count, low, high, keys.open);
  }
  const uint32_t key = keys.open[0];
  const float score = key_score(key);
  const int64_t equals = equals_accepted(limits, before, score, cost_units(score, unit));
  return {key, equals >= count ? args.length : bound_of(keys.all, key, equals)};
}

// Puts ones in the place of the key of every position that is accepted, zeros elsewhere.
void mark_accepted(uint32_t* keys, int64_t length, End end) {
  for (int64_t i = 0; i < end.bound; ++i) keys[i] = keys[i] <= end.key ? ~0u : 0u;
  for (int64_t i = end.bound; i < length; ++i) keys[i] = keys[i] < end.key ? ~0u : 0u;
}

template <class Token, class Proposal, bool kPacked>
void take_proposals(const CommitArgs& args, int64_t row, const uint32_t* accepted) {
  const Cells<Token, kPacked> tokens(args.tokens, row);
  const Cells<const Proposal, kPacked> proposal(args.proposal, row);
  const int64_t length = args.length;  // which tokens of 64 bits could be, to the compiler
  for (int64_t i = 0; i < length; ++i) {
    const Token taken = static_cast<Token>(proposal[i]);
    tokens[i] = accepted[i] != 0 ? taken : tokens[i];
  }
}

template <class Token, bool kPacked>
void take_noise(const CommitArgs& args, int64_t row, uint32_t* accepted, const VectorKeys& keys) {
  TileWords words;
  const Row coordinates = {static_cast<uint64_t>(sample_id_of(args, row)), static_cast<uint32_t>(args.step),
                           kCommitStream};
  const Cells<Token, kPacked> tokens(args.tokens, row);
  const Cells<const uint8_t, kPacked> eligible(args.eligible, row);
  for (int64_t begin = 0; begin < args.length; begin += kTile) {
    const int64_t count = smaller(kTile, args.length - begin);
    fill_noise(words, coordinates, keys, args.noise, begin, count);
    // The words that decide serve for nothing here: ones in their place where a token stays.
    uint32_t* stays = words.decide;
    for (int64_t i = 0; i < count; ++i) stays[i] = accepted[begin + i];
    if (eligible.data != nullptr) {
      for (int64_t i = 0; i < count; ++i) stays[i] |= eligible[begin + i] != 0 ? 0u : ~0u;
    }
    for (int64_t i = 0; i < count; ++i) {
      const Token noise = static_cast<Token>(words.draw[i]);
      tokens[begin + i] = stays[i] != 0 ? tokens[begin + i] : noise;
    }
  }
}

template <class Token, bool kPacked>
void write_row(const CommitArgs& args, int64_t row, uint32_t* accepted, const VectorKeys& keys) {
  if (args.proposal_bytes == 8) {
    take_proposals<Token, int64_t, kPacked>(args, row, accepted);
  } else {
    take_proposals<Token, int32_t, kPacked>(args, row, accepted);
  }
  if (args.noises_rest) take_noise<Token, kPacked>(args, row, accepted, keys);
  const Cells<uint8_t, kPacked> told(args.accepted, row);
  if (told.data == nullptr) return;
  for (int64_t i = 0; i < args.length; ++i) told[i] = static_cast<uint8_t>(accepted[i] & 1u);
}

template <bool kPacked>
void commit_row(const CommitArgs& args, int64_t row, const Keys& keys, const VectorKeys& philox) {
  fill_keys<kPacked>(args, row, keys.all);
  mark_accepted(keys.all, args.length, find_end(args, row, keys));
  if (args.token_bytes == 8) {
    write_row<int64_t, kPacked>(args, row, keys.all, philox);
  } else {
    write_row<int32_t, kPacked>(args, row, keys.all, philox);
  }
}

}  // namespace

bool commit(const CommitArgs& args, int threads) {
  if (!is_valid(args)) return false;
  const VectorKeys philox = vector_keys(args.seed);
  const bool packed = is_packed(args);
  on_threads(threads, args.batch * args.length >= kParallelFrom, [&](const Member& member) {
    const Keys keys(args.length);
    member.in_parts(args.batch, [&](int64_t row) {
      if (packed) {
        commit_row<true>(args, row, keys, philox);
      } else {
        commit_row<false>(args, row, keys, philox);
      }
    });
  });
  return true;
}

}  // namespace ggm::cpu::GGM_ISA
