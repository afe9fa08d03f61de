// A step whose arguments were worked out before, but for the addresses of its tensors.
#pragma once

#include <array>

#include "kernels.h"

namespace ggm {

// The tensors of a plan, those that are written first.
struct StepPlan {
  static constexpr int kWritten = 8;
  enum Field {
    tokens, log_sum_exp, log_prob, keep_prob, raw_log_prob, entropy, margin, argmax,
    logits, positions, sample_ids, frozen, noise_rate, noise_log_probs, kFields
  };
  using Addresses = std::array<uintptr_t, kFields>;

  GlauberArgs args;
  LogitsTile tile;
  std::array<int64_t, kFields> spans;  // bytes from the first element to the end of the last one

  // Whether no tensor that is written has bytes between the ends of another one.
  bool apart(const Addresses& at) const {
    for (int written = 0; written < kWritten; ++written) {
      for (int other = written + 1; other < kFields; ++other) {
        const bool meet = at[written] < at[other] + static_cast<uintptr_t>(spans[other]) &&
                          at[other] < at[written] + static_cast<uintptr_t>(spans[written]);
        if (spans[written] > 0 && spans[other] > 0 && meet) return false;
      }
    }
    return true;
  }

  GlauberArgs args_at(const Addresses& at, uint64_t seed, int64_t step) const {
    GlauberArgs moved = args;
    set(moved.tokens, at[tokens]);
    set(moved.log_sum_exp, at[log_sum_exp]);
    set(moved.log_prob, at[log_prob]);
    set(moved.keep_prob, at[keep_prob]);
    set(moved.options.raw_log_prob, at[raw_log_prob]);
    set(moved.options.entropy, at[entropy]);
    set(moved.options.margin, at[margin]);
    set(moved.options.argmax, at[argmax]);
    set(moved.positions, at[positions]);
    set(moved.sample_ids, at[sample_ids]);
    set(moved.frozen, at[frozen]);
    set(moved.noise_rate, at[noise_rate]);
    set(moved.noise_log_probs, at[noise_log_probs]);
    moved.seed = seed;
    moved.step = step;
    return moved;
  }

  LogitsTile tile_at(const Addresses& at) const {
    LogitsTile moved = tile;
    set(moved.logits, at[logits]);
    return moved;
  }

 private:
  template <class T>
  static void set(T*& pointer, uintptr_t address) {
    pointer = reinterpret_cast<T*>(address);
  }
};

}  // namespace ggm
