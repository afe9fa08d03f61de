#include "numerics/sigmoid_bce.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/simd_float.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 1 << 14;  // logits below which a second thread is not worth waking
constexpr int kPendingBlocks = 32;          // vectors that are added in float32 before they go to a double

// Logits of a row with what is added to them, from a candidate on.
GGM_HD Floats logits_at(const SharedTile& tile, const float* row, float offset, int64_t column) {
  const int many = lanes_for(tile.columns - column);
  const Floats f = load_some(row + column, many) + offset;
  return tile.bias == nullptr ? f : f + load_some(tile.bias + column, many);
}

GGM_HD float offset_of(const SharedTile& tile, int64_t row) { return tile.offset == nullptr ? 0.0f : tile.offset[row]; }

GGM_HD bool worth_threads(const SharedTile& tile) { return tile.rows * tile.columns >= kParallelFrom; }

double loss_of_row(const SharedTile& tile, int64_t row) {
  const float* logits = static_cast<const float*>(tile.logits) + row * tile.row_stride;
  const float offset = offset_of(tile, row);
  double total = 0.0;
  for (int64_t column = 0; column < tile.columns;) {
    Floats pending = {};
    for (int block = 0; block < kPendingBlocks && column < tile.columns; ++block, column += kLanes) {
      const Floats f = logits_at(tile, logits, offset, column);
      const Floats weight = load_some(tile.weight + column, lanes_for(tile.columns - column));
      pending += loss_of(f, log1p_unit(exp_minus_abs(f)), Floats{}, weight);
    }
    for (int lane = 0; lane < kLanes; ++lane) total += pending[lane];
  }
  return total;
}

void gradient_of_row(const SharedTile& tile, const float* row_gradient, int64_t row, float* out) {
  const float* logits = static_cast<const float*>(tile.logits) + row * tile.row_stride;
  const float offset = offset_of(tile, row), scale = row_gradient[row];
  for (int64_t column = 0; column < tile.columns; column += kLanes) {
    const int many = lanes_for(tile.columns - column);
    const Floats f = logits_at(tile, logits, offset, column);
    const Floats weight = load_some(tile.weight + column, many);
    const Floats gradient = scale * derivative_of(f, exp_minus_abs(f), Floats{}, weight);
    store_some(out + column, gradient, many);
  }
}

}  // namespace

void shared_sigmoid_bce(const SharedTile& tile, double* sums, int threads) {
  for_each(tile.rows, threads, worth_threads(tile), [&](int64_t row) { sums[row] += loss_of_row(tile, row); });
}

void shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient, const SharedGradientTile& out,
                                 int threads) {
  for_each(tile.rows, threads, worth_threads(tile), [&](int64_t row) {
    gradient_of_row(tile, row_gradient, row, static_cast<float*>(out.gradient) + row * out.row_stride);
  });
}

}  // namespace ggm::cpu::GGM_ISA
