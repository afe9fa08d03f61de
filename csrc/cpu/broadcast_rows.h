// One number after the other of several rows at once, each in all lanes: for products of few rows. Internal to
// each instruction set.
#pragma once

#include "cpu/simd_float.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 1 << 20;  // products of two numbers below which a second thread is not worth waking

// Addresses in few registers, which have to last for 24 rows.
template <int kRows>
class BroadcastRows {
 public:
  GGM_HD_MEMBER BroadcastRows(const float* first, int64_t stride) : stride_(stride), three_(3 * stride) {
    for (int i = 0; i < kFours; ++i) fours_[i] = first + 4 * i * stride;
  }
  GGM_HD_MEMBER Floats of(int row) const {
    const float* const four = fours_[row / 4];
    const int rest = row % 4;
    return load_to_all(rest == 0 ? four : rest == 1 ? four + stride_ : rest == 2 ? four + 2 * stride_ : four + three_);
  }
  GGM_HD_MEMBER void go_on() {
    for (const float*& four : fours_) ++four;
  }

 private:
  static constexpr int kFours = (kRows + 3) / 4;
  const float* fours_[kFours];
  const int64_t stride_, three_;
};

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
