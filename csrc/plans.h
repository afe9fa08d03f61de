// Calls of ops whose arguments were worked out before, but for the addresses of their tensors, the seed and the step.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels.h"

namespace ggm {

// Where the tensors of a call lie. The plan knows the bytes of each, from its first element to the end of its last one,
// and the addresses of those that it holds itself; the others come with a call. The first kWritten are written.
template <int kFields, int kWritten>
struct Extents {
  using Addresses = std::array<uintptr_t, kFields>;
  using Bytes = std::array<int64_t, kFields>;
  Bytes bytes;
  Addresses held;
  std::vector<int> moving;  // fields whose addresses come with a call

  // Whether no tensor that is written lies between the ends of another one.
  bool apart(const Addresses& at) const {
    for (int written = 0; written < kWritten; ++written) {
      if (bytes[written] == 0) continue;
      for (int other = written + 1; other < kFields; ++other) {
        const bool meet = at[written] < at[other] + static_cast<uintptr_t>(bytes[other]) &&
                          at[other] < at[written] + static_cast<uintptr_t>(bytes[written]);
        if (bytes[other] > 0 && meet) return false;
      }
    }
    return true;
  }
};

template <class T>
void move_to(T*& pointer, uintptr_t address) {
  pointer = reinterpret_cast<T*>(address);
}

// The tensors of a plan, as an enumeration and by name: Python counts them in the order of `names`.
#define GGM_PLAN_ENUMERATOR(name) name,
#define GGM_PLAN_NAME(name) #name,
#define GGM_PLAN_FIELDS(FIELDS) \
  enum Field { FIELDS(GGM_PLAN_ENUMERATOR) kFields }; \
  static std::vector<std::string> names() { return {FIELDS(GGM_PLAN_NAME)}; }

struct StepPlan {
#define GGM_STEP_FIELDS(F) \
  F(tokens) F(log_sum_exp) F(log_prob) F(keep_prob) F(raw_log_prob) F(entropy) F(margin) F(argmax) \
  F(logits) F(positions) F(sample_ids) F(frozen) F(noise_rate) F(noise_log_probs) F(noise_table) \
  F(temperature) F(top_k) F(top_p) F(min_p) F(logit_shift) F(mixture)
  GGM_PLAN_FIELDS(GGM_STEP_FIELDS)
  using Where = Extents<kFields, logits>;

  GlauberArgs args;
  LogitsTile tile;
  Where where;

  // Rows without a law; -1, with nothing written, for a value that is out of range.
  int64_t run(const Where::Addresses& at, uint64_t seed, int64_t step, int threads) const {
    GlauberArgs moved = args;
    LogitsTile moved_tile = tile;
    move_to(moved.tokens, at[tokens]);
    move_to(moved.log_sum_exp, at[log_sum_exp]);
    move_to(moved.log_prob, at[log_prob]);
    move_to(moved.keep_prob, at[keep_prob]);
    move_to(moved.options.raw_log_prob, at[raw_log_prob]);
    move_to(moved.options.entropy, at[entropy]);
    move_to(moved.options.margin, at[margin]);
    move_to(moved.options.argmax, at[argmax]);
    move_to(moved_tile.logits, at[logits]);
    move_to(moved.positions, at[positions]);
    move_to(moved.sample_ids, at[sample_ids]);
    move_to(moved.frozen, at[frozen]);
    move_to(moved.noise_rate, at[noise_rate]);
    move_to(moved.noise_log_probs, at[noise_log_probs]);
    move_to(moved.options.noise_table, at[noise_table]);
    move_to(moved.options.temperature.values, at[temperature]);
    move_to(moved.options.top_k.values, at[top_k]);
    move_to(moved.options.top_p.values, at[top_p]);
    move_to(moved.options.min_p.values, at[min_p]);
    move_to(moved.options.logit_shift.values, at[logit_shift]);
    move_to(moved.options.mixture.values, at[mixture]);
    moved.seed = seed;
    moved.step = step;
    return cpu::glauber_check(moved) ? cpu::glauber_step(moved, moved_tile, threads) : -1;
  }
};

struct CommitPlan {
#define GGM_COMMIT_FIELDS(F) \
  F(tokens) F(accepted) F(proposal) F(score) F(eligible) F(count) F(threshold) F(budget) F(sample_ids)
  GGM_PLAN_FIELDS(GGM_COMMIT_FIELDS)
  using Where = Extents<kFields, proposal>;

  CommitArgs args;
  Where where;

  int64_t run(const Where::Addresses& at, uint64_t seed, int64_t step, int threads) const {
    CommitArgs moved = args;
    move_to(moved.tokens.data, at[tokens]);
    move_to(moved.accepted.data, at[accepted]);
    move_to(moved.proposal.data, at[proposal]);
    move_to(moved.score.data, at[score]);
    move_to(moved.eligible.data, at[eligible]);
    move_to(moved.count.values, at[count]);
    move_to(moved.threshold.values, at[threshold]);
    move_to(moved.budget.values, at[budget]);
    move_to(moved.sample_ids, at[sample_ids]);
    moved.seed = seed;
    moved.step = step;
    return cpu::commit(moved, threads) ? 0 : -1;
  }
};

struct CorruptPlan {
#define GGM_CORRUPT_FIELDS(F) F(noisy) F(is_signal) F(tokens) F(keep_prob) F(sample_ids) F(frozen)
  GGM_PLAN_FIELDS(GGM_CORRUPT_FIELDS)
  using Where = Extents<kFields, tokens>;

  CorruptArgs args;
  Where where;

  int64_t run(const Where::Addresses& at, uint64_t seed, int64_t step, int threads) const {
    CorruptArgs moved = args;
    move_to(moved.noisy, at[noisy]);
    move_to(moved.is_signal, at[is_signal]);
    move_to(moved.tokens, at[tokens]);
    move_to(moved.keep_prob, at[keep_prob]);
    move_to(moved.sample_ids, at[sample_ids]);
    move_to(moved.frozen, at[frozen]);
    moved.seed = seed;
    moved.step = step;
    return cpu::corrupt(moved, threads) ? 0 : -1;
  }
};

// A number from 0 on, or -1, with nothing written, where a value or an address is amiss. `addresses`: those that move.
template <class Plan>
int64_t run_planned(const Plan& plan, const std::vector<uintptr_t>& addresses, uint64_t seed, int64_t step,
                    int threads) {
  typename Plan::Where::Addresses at = plan.where.held;
  if (addresses.size() != plan.where.moving.size()) return -1;
  for (size_t i = 0; i < addresses.size(); ++i) at[plan.where.moving[i]] = addresses[i];
  return plan.where.apart(at) ? plan.run(at, seed, step, threads) : -1;
}

}  // namespace ggm
