// Calls of ops whose arguments were worked out before, but for the addresses of their tensors, the seed and the step.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels.h"

namespace ggm {

// Where the tensors of a call lie: the addresses come with it, the bytes of each (from its first element to the end of
// its last one) with the plan. The first kWritten are written.
template <int kFields, int kWritten>
struct Extents {
  using Addresses = std::array<uintptr_t, kFields>;
  using Bytes = std::array<int64_t, kFields>;
  Bytes bytes;

  // Whether no tensor that is written lies between the ends of another one.
  bool apart(const Addresses& at) const {
    for (int written = 0; written < kWritten; ++written) {
      for (int other = written + 1; other < kFields; ++other) {
        const bool meet = at[written] < at[other] + static_cast<uintptr_t>(bytes[other]) &&
                          at[other] < at[written] + static_cast<uintptr_t>(bytes[written]);
        if (bytes[written] > 0 && bytes[other] > 0 && meet) return false;
      }
    }
    return true;
  }
};

template <class T>
void move_to(T*& pointer, uintptr_t address) {
  pointer = reinterpret_cast<T*>(address);
}

// The tensors of a plan, as an enumeration and by name: Python gives addresses in the order of `names`.
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

  void move(const Where::Addresses& at, uint64_t seed, int64_t step) {
    move_to(args.tokens, at[tokens]);
    move_to(args.log_sum_exp, at[log_sum_exp]);
    move_to(args.log_prob, at[log_prob]);
    move_to(args.keep_prob, at[keep_prob]);
    move_to(args.options.raw_log_prob, at[raw_log_prob]);
    move_to(args.options.entropy, at[entropy]);
    move_to(args.options.margin, at[margin]);
    move_to(args.options.argmax, at[argmax]);
    move_to(tile.logits, at[logits]);
    move_to(args.positions, at[positions]);
    move_to(args.sample_ids, at[sample_ids]);
    move_to(args.frozen, at[frozen]);
    move_to(args.noise_rate, at[noise_rate]);
    move_to(args.noise_log_probs, at[noise_log_probs]);
    move_to(args.options.noise_table, at[noise_table]);
    move_to(args.options.temperature.values, at[temperature]);
    move_to(args.options.top_k.values, at[top_k]);
    move_to(args.options.top_p.values, at[top_p]);
    move_to(args.options.min_p.values, at[min_p]);
    move_to(args.options.logit_shift.values, at[logit_shift]);
    move_to(args.options.mixture.values, at[mixture]);
    args.seed = seed;
    args.step = step;
  }

  // Rows without a law; -1, with nothing written, for a value that is out of range.
  int64_t run(int threads) const { return cpu::glauber_check(args) ? cpu::glauber_step(args, tile, threads) : -1; }
};

struct CommitPlan {
#define GGM_COMMIT_FIELDS(F) \
  F(tokens) F(accepted) F(proposal) F(score) F(eligible) F(count) F(threshold) F(budget) F(sample_ids)
  GGM_PLAN_FIELDS(GGM_COMMIT_FIELDS)
  using Where = Extents<kFields, proposal>;

  CommitArgs args;
  Where where;

  void move(const Where::Addresses& at, uint64_t seed, int64_t step) {
    move_to(args.tokens.data, at[tokens]);
    move_to(args.accepted.data, at[accepted]);
    move_to(args.proposal.data, at[proposal]);
    move_to(args.score.data, at[score]);
    move_to(args.eligible.data, at[eligible]);
    move_to(args.count.values, at[count]);
    move_to(args.threshold.values, at[threshold]);
    move_to(args.budget.values, at[budget]);
    move_to(args.sample_ids, at[sample_ids]);
    args.seed = seed;
    args.step = step;
  }

  int64_t run(int threads) const { return cpu::commit(args, threads) ? 0 : -1; }
};

struct CorruptPlan {
#define GGM_CORRUPT_FIELDS(F) F(noisy) F(is_signal) F(tokens) F(keep_prob) F(sample_ids) F(frozen)
  GGM_PLAN_FIELDS(GGM_CORRUPT_FIELDS)
  using Where = Extents<kFields, tokens>;

  CorruptArgs args;
  Where where;

  void move(const Where::Addresses& at, uint64_t seed, int64_t step) {
    move_to(args.noisy, at[noisy]);
    move_to(args.is_signal, at[is_signal]);
    move_to(args.tokens, at[tokens]);
    move_to(args.keep_prob, at[keep_prob]);
    move_to(args.sample_ids, at[sample_ids]);
    move_to(args.frozen, at[frozen]);
    args.seed = seed;
    args.step = step;
  }

  int64_t run(int threads) const { return cpu::corrupt(args, threads) ? 0 : -1; }
};

// A number from 0 on, or -1, with nothing written, where a value or an address is amiss.
template <class Plan>
int64_t run_planned(Plan plan, const typename Plan::Where::Addresses& addresses, uint64_t seed, int64_t step,
                    int threads) {
  if (!plan.where.apart(addresses)) return -1;
  plan.move(addresses, seed, step);
  return plan.run(threads);
}

}  // namespace ggm
