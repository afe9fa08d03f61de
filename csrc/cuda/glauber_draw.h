// A row's race once its groups are known, by a warp: the records of a tile's groups go into the state of the row in one
// fixed order, and of a group that takes the lead the tokens race while their logits are at hand. Of T tiles of equal
// mass 1 + 1/2 + .. + 1/T do so.
#pragma once

#include "cuda/glauber_group.h"
#include "numerics/race_state.h"

namespace ggm::cuda {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFFu;

// Who leads of all lanes, the first of equals.
__device__ __forceinline__ RaceState warp_leader(const RaceState& of_lane) {
  const float best = warp_largest(of_lane.score);
  return {best, warp_least(of_lane.score == best ? of_lane.winner : kNone)};
}

__device__ __forceinline__ uint32_t pick(const PhiloxBlock<uint32_t>& words, uint32_t j) {
  return j == 0 ? words.w0 : j == 1 ? words.w1 : j == 2 ? words.w2 : words.w3;
}

// A row at its tile.
template <class T>
struct Row {
  RowLogits<T> logits;
  Race race;
  PhiloxKeys<uint32_t> keys;
  Law law;
  Wants wants;
  bool races_groups;
};

// What the lanes have of a row's sums, relative to one top.
struct Sums {
  double law = 0.0, tempered = 0.0, moment = 0.0, raw = 0.0;
};

__device__ __forceinline__ void add_record(Sums& sums, const GroupRecord& record, float top, const Law& law,
                                           const Wants& wants) {
  const float z_top = tempered(record.top, top, law.inverse_temperature), share = expf(z_top);
  if (wants.law_mass) sums.law += static_cast<double>(share * record.law_mass);
  if (wants.entropy && share > 0.0f) {
    const double mass = static_cast<double>(record.tempered_mass), weight = static_cast<double>(share);
    sums.tempered += weight * mass;
    sums.moment += weight * (static_cast<double>(record.moment) + static_cast<double>(z_top) * mass);
  }
  if (wants.raw_mass) sums.raw += static_cast<double>(expf(tempered(record.top, top, 1.0f)) * record.raw_mass);
}

__device__ __forceinline__ void add_sums(RowState& state, const Sums& sums, const Wants& wants) {
  if (wants.law_mass) state.law_mass += warp_sum(sums.law);
  if (wants.entropy) state.tempered_mass += warp_sum(sums.tempered);
  if (wants.entropy) state.moment += warp_sum(sums.moment);
  if (wants.raw_mass) state.raw_mass += warp_sum(sums.raw);
}

template <class T>
__device__ __forceinline__ float group_score(const Row<T>& row, const GroupRecord& record, float top, uint32_t group) {
  const float z = tempered(record.top, top, row.law.inverse_temperature) + logf(record.law_mass);
  return race_score(z, pick(words_of(row.race, kGroupStream, group / 4, row.keys), group % 4));
}

// What the records of a tile's groups bring to a row.
struct Fold {
  uint32_t leading;  // group of the tile that takes the lead in the race, or kNone
  uint32_t highest;  // and the first with a logit above all before
};

template <class T>
__device__ __forceinline__ Fold fold_groups(RowState& state, const Row<T>& row, const GroupRecord* records,
                                            uint32_t groups) {
  const uint32_t lane = threadIdx.x % kWarp;
  RaceState tallest = race_start();
  Two two = {minus_infinity(), minus_infinity()};
  float top = state.top;
  for (uint32_t n = lane; n < groups; n += kWarp) {
    const GroupRecord& record = records[n];
    top = larger_or_nan(top, record.top);
    enter(tallest, record.top, n);
    two.take(record.top);
    two.take(record.second);
  }
  top = warp_largest(top);
  if (top != top) state.has_nan = 1u;
  if (state.has_nan != 0u || top == minus_infinity()) return {kNone, kNone};
  const float before = state.top;
  const bool rises = top > before;
  rise_to(state, top, row.law.inverse_temperature);
  if (row.wants.margin) {
    two = warp_two(two);
    state.second = fmaxf(fmaxf(state.second, two.second), rises ? before : two.first);
  }
  Sums sums;
  RaceState leader = race_start();
  for (uint32_t n = lane; n < groups; n += kWarp) {
    const GroupRecord record = records[n];
    if (!(record.top > minus_infinity())) continue;
    add_record(sums, record, top, row.law, row.wants);
    if (row.races_groups && record.law_mass > 0.0f) {
      const uint32_t group = static_cast<uint32_t>(row.logits.token_begin / kRaceGroup) + n;
      enter(leader, group_score(row, record, top, group), n);
    }
  }
  add_sums(state, sums, row.wants);
  leader = warp_leader(leader);
  Fold fold = {kNone, rises ? warp_leader(tallest).winner : kNone};
  if (row.races_groups && leader.score > state.score) {
    state.score = leader.score;
    fold.leading = leader.winner;
  }
  return fold;
}

// The first token of a group with the logit g, which one has: it ends all the same where a caller has given one place
// twice, and what was read for g has changed since.
template <class T>
__device__ __forceinline__ uint32_t token_with(const RowLogits<T>& logits, uint32_t begin, float g) {
#pragma unroll 1
  for (uint32_t base = begin; base < begin + static_cast<uint32_t>(kRaceGroup); base += kWarp) {
    const unsigned owners = __ballot_sync(kAllLanes, logits.or_nothing(base + threadIdx.x % kWarp) == g);
    if (owners != 0) return base + __ffs(owners) - 1;
  }
  return begin;
}

// The tokens of a group race; top is its largest logit. Each lane has four tokens of a Philox call at a time, which get
// their logarithms where one in the warp may win.
template <class T>
__device__ __forceinline__ void race_tokens(RowState& state, const Row<T>& row, uint32_t begin, float top) {
  const uint32_t first_token = static_cast<uint32_t>(row.logits.token_begin);
  const uint32_t end = min(begin + static_cast<uint32_t>(kRaceGroup), row.logits.tokens);
  RaceState leader = race_start();
  float bound = minus_infinity();
#pragma unroll 1
  for (uint32_t base = begin; base < end; base += 4 * kWarp) {
    const uint32_t at = base + threadIdx.x % kWarp * 4;
    const PhiloxBlock<uint32_t> words = words_of(row.race, kRaceStream, (first_token + at) / 4, row.keys);
    float z[4];
    bool may = false;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const float g = row.logits.or_nothing(at + j);
      z[j] = tempered(g, top, row.law.inverse_temperature);
      if (row.law.filtered && !(tempered(g, state.top, row.law.inverse_temperature) >= row.law.threshold)) {
        z[j] = minus_infinity();
      }
      may |= may_win(z[j], pick(words, j), bound);
    }
    if (!__any_sync(kAllLanes, may)) continue;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) enter(leader, race_score(z[j], pick(words, j)), at + j);
    bound = warp_largest(leader.score);
  }
  const uint32_t winner = warp_leader(leader).winner;
  state.winner = first_token + winner;
  state.drawn = row.logits[winner];
}

template <class T>
__device__ __forceinline__ void note_highest(RowState& state, const Row<T>& row, uint32_t begin, float top) {
  const uint32_t at = token_with(row.logits, begin, top);
  state.argmax = static_cast<uint32_t>(row.logits.token_begin) + at;
  if (!row.law.greedy) return;
  state.winner = state.argmax;
  state.drawn = top;
  state.score = 0.0f;
}

// A tile of a row whose vocabulary has several groups.
template <class T>
__device__ __forceinline__ void race_tile(RowState& state, const Row<T>& row, const GroupRecord* records) {
  const uint32_t groups = (row.logits.tokens + static_cast<uint32_t>(kRaceGroup) - 1) / kRaceGroup;
  const Fold fold = fold_groups(state, row, records, groups);
  if (fold.highest != kNone && (row.wants.argmax || row.law.greedy)) {
    note_highest(state, row, fold.highest * kRaceGroup, state.top);
  }
  if (fold.leading != kNone) race_tokens(state, row, fold.leading * kRaceGroup, records[fold.leading].top);
}

// The only group of a vocabulary.
template <class T>
__device__ __forceinline__ void race_alone(RowState& state, const Row<T>& row, const GroupRecord& record) {
  if (record.top != record.top) state.has_nan = 1u;
  if (!(record.top > minus_infinity())) return;
  state.top = record.top;
  state.second = record.second;
  state.law_mass = static_cast<double>(record.law_mass);
  state.tempered_mass = static_cast<double>(record.tempered_mass);
  state.moment = static_cast<double>(record.moment);
  state.raw_mass = static_cast<double>(record.raw_mass);
  if (row.wants.argmax || row.law.greedy) note_highest(state, row, 0, record.top);
  if (!row.law.greedy) race_tokens(state, row, 0, record.top);
}

}  // namespace
}  // namespace ggm::cuda
