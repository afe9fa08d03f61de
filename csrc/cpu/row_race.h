// The race of a row, group by group: one pass over its logits. Internal to each instruction set.
#pragma once

#include "cpu/group_sums.h"

namespace ggm::cpu::GGM_ISA {
namespace {

// One row to be raced.
struct Row {
  Race race;
  const RaceKeys* keys;
  Law law;
  Wants wants;
  Edits edits;
  int64_t vocab_size;
  int64_t present_token, noise_token;  // whose logits are noted; -1 for none
};

// A group's logits as they count: itself, or a copy with the edits.
struct EditedGroup {
  float logits[kRaceGroup];

  template <class T>
  void fill(const Span<T>& group, const Edits& edits) {
    for (int64_t i = 0; i < group.tokens; i += kBatch) {
      Floats g[8];
      load_batch(group.logits + i, group.tokens - i, g);
      for (int j = 0; j < 8; ++j) {
        if (edits.softcap > 0.0f) g[j] = tanh_of(g[j] / edits.softcap) * edits.softcap;
        memcpy(logits + i + j * kLanes, &g[j], sizeof g[j]);
      }
    }
    const int64_t at = edits.shifted_token - group.token_begin;
    if (at >= 0 && at < group.tokens) logits[at] += edits.shift;
  }
};

template <class T>
GGM_HD bool is_edited(const Span<T>& group, const Edits& edits) {
  const int64_t at = edits.shifted_token - group.token_begin;
  return edits.softcap > 0.0f || (at >= 0 && at < group.tokens);
}

// Calls `use` with the group as it counts.
template <class T, class Use>
GGM_HD void with_edits(const Span<T>& group, const Edits& edits, const Use& use) {
  if (is_edited(group, edits)) {
    alignas(64) EditedGroup edited;
    edited.fill(group, edits);
    use(Span<float>{edited.logits, group.token_begin, group.tokens});
  } else {
    use(group);
  }
}

// The words of a row's groups, one after the other: four of a call.
class GroupWords {
 public:
  GGM_HD_MEMBER uint32_t of(const Race& race, int64_t group, const PhiloxKeys<uint32_t>& keys) {
    if (group / 4 != block_) {
      const PhiloxBlock<uint32_t> block = words_of(race, kGroupStream, static_cast<uint32_t>(group / 4), keys);
      block_ = group / 4;
      words_[0] = block.w0;
      words_[1] = block.w1;
      words_[2] = block.w2;
      words_[3] = block.w3;
    }
    return words_[group % 4];
  }

 private:
  int64_t block_ = -1;
  uint32_t words_[4] = {};
};

// Of a group whose mass is not relative to its own top. The logarithm of a larger one is too coarse for a score.
constexpr float kMostWithoutTop = 0x1p20f;
// Of the tempered tops of a batch's lanes. Normal logits that are so far apart have a standard deviation of 14.
constexpr float kMostApart = 32.0f;

// A race over part of a row.
class RowRacer {
 public:
  RowRacer(const Row& row, RowState& state)
      : row_(row),
        state_(state),
        races_groups_(row.vocab_size > kRaceGroup && !row.law.greedy),
        sums_law_(row.wants.law_mass || races_groups_),
        is_plain_(row.law.inverse_temperature == 1.0f),
        needs_no_tops_(races_groups_ && !row.law.filtered && !row.wants.margin && !row.wants.argmax &&
                       (is_plain_ || !row.wants.raw_mass)),
        seen_(row.law.filtered ? minus_infinity() : state.top) {}

  template <class T>
  void run(const Span<T>& span) {
    const bool edits = row_.edits.softcap > 0.0f || row_.edits.shifted_token >= 0;
    for (int64_t begin = 0; begin < span.tokens && state_.has_nan == 0u; begin += kRaceGroup) {
      if (edits) {
        with_edits(group_at(span, begin), row_.edits, [this](const auto& edited) { enter_group(edited); });
      } else {
        enter_group(group_at(span, begin));
      }
    }
    if (leader_ >= 0 && state_.has_nan == 0u) draw_from(span);
  }

 private:
  template <class T>
  GGM_HD_MEMBER static Span<T> group_at(const Span<T>& span, int64_t begin) {
    const int64_t left = span.tokens - begin;
    return {span.logits + begin, span.token_begin + begin, left < kRaceGroup ? left : kRaceGroup};
  }

  template <class T>
  GGM_HD_MEMBER void enter_group(const Span<T>& group) {
    note(group, row_.present_token, state_.present);
    note(group, row_.noise_token, state_.noise);
    if (needs_no_tops_ && enter_without_top(group)) return;
    const GroupTop largest = top_of(group);
    if (largest.has_nan) {
      state_.has_nan = 1u;
      return;
    }
    if (row_.wants.margin) note_second(group, largest.top, seen_);
    const bool rises = largest.top > seen_;
    if (rises) seen_ = largest.top;
    if (rises && (row_.wants.argmax || row_.law.greedy)) {
      state_.argmax = static_cast<uint32_t>(group.token_begin + index_of(group, largest.top));
    }
    rise_to(state_, largest.top, row_.law.inverse_temperature);
    const float mass = add_sums(group, largest.top);
    if (row_.law.greedy) {
      if (rises) take(state_.argmax, largest.top);
    } else {
      enter_race(group.token_begin / kRaceGroup, largest.top, mass);
    }
  }

  // Relative to the largest of its first batch, which saves a pass: unless the group's own lies so much higher that
  // digits are lost, and nothing is done. Where logits lie far apart that is to be expected.
  template <class T>
  GGM_HD_MEMBER bool enter_without_top(const Span<T>& group) {
    const BatchTops first = tops_of_batch(group.logits, group.tokens);
    if (!((first.most - first.least) * row_.law.inverse_temperature < kMostApart)) return false;
    const float near_top = first.most;
    const GroupSums sums = asked_sums(group, near_top);
    if (sums.mass != sums.mass) {
      state_.has_nan = 1u;
      return true;
    }
    if (!(sums.mass < kMostWithoutTop)) return false;
    rise_to(state_, near_top, row_.law.inverse_temperature);
    if (row_.wants.law_mass || row_.wants.raw_mass || row_.wants.entropy) add_to_row(sums, near_top);
    enter_race(group.token_begin / kRaceGroup, near_top, sums.mass);
    return true;
  }

  // Of a group whose law has neither filters nor, where the raw mass is asked for, a temperature.
  GGM_HD_MEMBER void add_to_row(const GroupSums& sums, float top) {
    const float z_top = tempered(top, state_.top, row_.law.inverse_temperature), share = expf(z_top);
    const double mass = product(sums.mass, share);
    if (row_.wants.law_mass) state_.law_mass += mass;
    if (row_.wants.raw_mass) state_.raw_mass += mass;
    if (row_.wants.entropy) add_moment(sums, share, z_top);
  }

  template <class T>
  GGM_HD_MEMBER static float largest_logit(const Span<T>& group) {
    return largest_of<T, false>(group.logits, group.tokens).top;
  }

  template <class T>
  GGM_HD_MEMBER static void note(const Span<T>& group, int64_t token, float& logit) {
    const int64_t at = token - group.token_begin;
    if (at >= 0 && at < group.tokens) logit = to_float(group.logits[at]);
  }

  template <class T>
  GGM_HD_MEMBER GroupTop top_of(const Span<T>& group) {
    if (group.tokens <= kFew) return largest_of_few(group.logits, group.tokens);
    return largest_of<T, true>(group.logits, group.tokens);
  }

  template <class T>
  GGM_HD_MEMBER void note_second(const Span<T>& group, float top, float top_before) {
    const float lower = top > top_before ? top_before : top;
    const float second = second_largest_of(group.logits, group.tokens);
    state_.second = fmaxf(state_.second, fmaxf(lower, second));
  }

  // Adds the sums that are asked for; returns the mass of the group in the race.
  template <class T>
  GGM_HD_MEMBER float add_sums(const Span<T>& group, float top) {
    const Law& law = row_.law;
    const bool shares_raw = is_plain_ && row_.wants.raw_mass;
    const bool tempers = !law.greedy && (row_.wants.entropy || (sums_law_ && !law.filtered) || shares_raw);
    const float z_top = tempered(top, state_.top, law.inverse_temperature);
    GroupSums sums = {0.0f, 0.0f};
    if (tempers) sums = asked_sums(group, top);
    const bool is_summed = row_.wants.entropy || row_.wants.law_mass || (shares_raw && tempers);
    const float share = is_summed ? expf(z_top) : 0.0f;  // of the group's unit of mass in the row's
    if (row_.wants.entropy && !law.greedy) add_moment(sums, share, z_top);
    if (row_.wants.raw_mass) {
      state_.raw_mass += shares_raw && tempers ? product(sums.mass, share)
                                               : product(sums_at<false>(group, top, 1.0f).mass,
                                                         expf(tempered(top, state_.top, 1.0f)));
    }
    float mass = sums.mass;
    if (law.filtered && sums_law_) mass = z_top >= law.threshold ? law_mass_above_threshold(group, top) : 0.0f;
    if (row_.wants.law_mass) state_.law_mass += product(mass, share);
    return mass;
  }

  // Of sums relative to a logit whose own z and whose share of the row's unit of mass these are.
  GGM_HD_MEMBER void add_moment(const GroupSums& sums, float share, float z) {
    state_.tempered_mass += product(sums.mass, share);
    if (!(share > 0.0f)) return;
    const double of_group = static_cast<double>(sums.moment) + product(sums.mass, z);
    state_.moment += static_cast<double>(share) * of_group;
  }

  GGM_HD_MEMBER static double product(float a, float b) {
    return static_cast<double>(a) * static_cast<double>(b);
  }

  template <class T>
  GGM_HD_MEMBER GroupSums asked_sums(const Span<T>& group, float top) const {
    const float inverse_temperature = row_.law.inverse_temperature;
    return row_.wants.entropy ? sums_at<true>(group, top, inverse_temperature)
                              : sums_at<false>(group, top, inverse_temperature);
  }

  template <bool kMoment, class T>
  GGM_HD_MEMBER static GroupSums sums_at(const Span<T>& group, float top, float inverse_temperature) {
    if (top == minus_infinity()) return {0.0f, 0.0f};
    if (top == -minus_infinity()) return {count_infinite(group.logits, group.tokens), 0.0f};
    return sums_of<T, kMoment>(group.logits, group.tokens, top, inverse_temperature);
  }

  template <class T>
  GGM_HD_MEMBER float law_mass_above_threshold(const Span<T>& group, float top) const {
    if (top == minus_infinity()) return 0.0f;
    if (top == -minus_infinity()) return count_infinite(group.logits, group.tokens);
    return mass_above_threshold(group.logits, group.tokens, row_.law, Tops{top, state_.top});
  }

  GGM_HD_MEMBER void enter_race(int64_t group, float top, float mass) {
    if (top == minus_infinity()) return;
    if (!races_groups_) {
      leader_ = group;
      leader_top_ = top;
      return;
    }
    if (!(mass > 0.0f)) return;
    const float z = tempered(top, state_.top, row_.law.inverse_temperature);
    const uint32_t word = words_.of(row_.race, group, row_.keys->of_one);
    if (!may_win(z + log_bound(mass), word, state_.score)) return;
    const float score = race_score(z + logf(mass), word);
    if (!(score > state_.score)) return;
    state_.score = score;
    leader_ = group;
    leader_top_ = top;
  }

  GGM_HD_MEMBER void take(uint32_t token, float g) {
    state_.winner = token;
    state_.drawn = g;
    state_.score = 0.0f;
  }

  // The tokens of the group that leads, which is in the span.
  template <class T>
  void draw_from(const Span<T>& span) {
    const Span<T> group = group_at(span, leader_ * kRaceGroup - span.token_begin);
    with_edits(group, row_.edits, [this](const auto& edited) {
      if (needs_no_tops_) leader_top_ = largest_logit(edited);
      state_.winner = race_tokens(edited, row_.race, *row_.keys, row_.law, Tops{leader_top_, state_.top});
      state_.drawn = to_float(edited.logits[state_.winner - edited.token_begin]);
    });
    if (!races_groups_) state_.score = 0.0f;
  }

  const Row& row_;
  RowState& state_;
  const bool races_groups_, sums_law_, is_plain_;
  const bool needs_no_tops_;  // of groups, but of the one that is drawn from
  GroupWords words_;
  int64_t leader_ = -1;
  float leader_top_ = 0.0f;
  float seen_;  // the largest logit so far, where filters have set the state's top beforehand, too
};

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
