#include "numerics/cross_entropy.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/simd_float.h"

namespace ggm::cpu::GGM_ISA {
namespace {

GGM_HD float minus_infinity() { return float_of(0xFF800000u); }

// A row of a tile of products, as logits.
template <class T>
struct Row {
  T* products;
  const float* bias;
  float softcap;
  int64_t tokens;
  int64_t target;       // its column; outside the tile it is nobody's
  int64_t shifted;      // likewise
  float shift;

  // Before the shift; lanes beyond `many` hold -inf, or -softcap.
  GGM_HD_MEMBER Floats unshifted(int64_t begin, int many) const {
    Floats logits = load_some(static_cast<const T*>(products) + begin, many, minus_infinity());
    if (bias != nullptr) logits += load_some(bias + begin, many, 0.0f);
    return softcap > 0.0f ? tanh_of(logits / softcap) * softcap : logits;
  }

  GGM_HD_MEMBER Floats shifted_from(Floats logits, int64_t begin, int many) const {
    const int64_t lane = shifted - begin;
    if (lane >= 0 && lane < many) logits[lane] += shift;
    return logits;
  }

  GGM_HD_MEMBER Floats logits(int64_t begin, int many) const {
    Floats all = shifted_from(unshifted(begin, many), begin, many);
    if (softcap > 0.0f) {
      for (int lane = many; lane < kLanes; ++lane) all[lane] = minus_infinity();
    }
    return all;
  }
};

template <class T>
GGM_HD Row<T> row_of(const CrossEntropyTile& tile, int64_t row) {
  const bool shifts = tile.logit_shift != nullptr;
  return {static_cast<T*>(tile.products) + row * tile.row_stride,
          tile.bias,
          tile.softcap,
          tile.tokens,
          tile.targets[row] - tile.token_begin,
          shifts ? tile.shifted_token[row] - tile.token_begin : -1,
          shifts ? tile.logit_shift[row] : 0.0f};
}

constexpr float kLog2E = 0x1.715476p0f;

// Two chains of sums, so that additions do not wait for each other.
template <class T>
float mass_of(const Row<T>& row, float top) {
  Floats sums[2] = {};
  for (int64_t i = 0; i < row.tokens; i += 2 * kLanes) {
    for (int j = 0; j < 2; ++j) {
      const int64_t begin = i + j * kLanes;
      if (begin >= row.tokens) break;
      const int many = lanes_for(row.tokens - begin);
      const Floats x = normal_exponent((row.logits(begin, many) - top) * kLog2E);
      sums[j] = add_exp2(sums[j], x);
    }
  }
  return tree_sum(sums[0] + sums[1]);
}

template <class T>
void sums_of_row(const CrossEntropyTile& tile, const CrossEntropySums& sums, int64_t index) {
  const Row<T> row = row_of<T>(tile, index);
  Floats largest = Floats{} + minus_infinity();
  Mask nan = {};
  for (int64_t begin = 0; begin < row.tokens; begin += kLanes) {
    const Floats logits = row.logits(begin, lanes_for(row.tokens - begin));
    nan |= logits != logits;
    largest = larger(logits, largest);
  }
  // NaN from one NaN on: beside it nothing is the largest.
  const float top = any(nan) ? float_of(0x7FC00000u) : tree_largest(largest);
  sums.top[index] = top;
  sums.mass[index] = top == minus_infinity() ? 0.0f : mass_of(row, top);
  if (row.target < 0 || row.target >= row.tokens) return;
  const int64_t begin = row.target / kLanes * kLanes;
  sums.target_logit[index] = row.logits(begin, lanes_for(row.tokens - begin))[row.target - begin];
}

struct RowScales {
  float top, log_mass, softmax_scale, target_scale;
};

GGM_HD RowScales scales_of(const CrossEntropyScales& scales, int64_t row) {
  return {scales.top[row], scales.log_mass[row], scales.softmax_scale[row], scales.target_scale[row]};
}

template <class T>
GGM_HD Floats gradients_of(const Row<T>& row, const RowScales& scales, int64_t begin, int many) {
  const Floats unshifted = row.unshifted(begin, many);
  const Floats x = (row.shifted_from(unshifted, begin, many) - scales.top) - scales.log_mass;
  const Floats share = x == x ? exp_nonpositive(x) : x;
  Floats gradients = share * scales.softmax_scale;
  const int64_t lane = row.target - begin;
  if (lane >= 0 && lane < many) gradients[lane] -= scales.target_scale;
  return row.softcap > 0.0f ? gradients * softcap_slope(unshifted, row.softcap) : gradients;
}

// Whether any gradient of the row is more than negligible, or NaN.
template <class T>
bool gradients_of_row(const CrossEntropyTile& tile, const CrossEntropyScales& scales, int64_t index) {
  const Row<T> row = row_of<T>(tile, index);
  const RowScales own = scales_of(scales, index);
  if (own.softmax_scale == 0.0f && own.target_scale == 0.0f) {  // whatever its logits are
    memset(row.products, 0, sizeof(T) * static_cast<size_t>(row.tokens));
    return false;
  }
  Mask matters = {};
  for (int64_t begin = 0; begin < row.tokens; begin += kLanes) {
    const int many = lanes_for(row.tokens - begin);
    const Floats gradients = gradients_of(row, own, begin, many);
    const Floats sizes = gradients < 0.0f ? -gradients : gradients;
    matters |= ~(sizes <= scales.negligible);
    store_some(row.products + begin, gradients, many);
    if (scales.bias == nullptr) continue;
    store_some(scales.bias + begin, load_some(scales.bias + begin, many, 0.0f) + gradients, many);
  }
  return any(matters);
}

template <class T>
bool gradients_of_tile(const CrossEntropyTile& tile, const CrossEntropyScales& scales) {
  bool matters = false;
  for (int64_t row = 0; row < tile.rows; ++row) matters |= gradients_of_row<T>(tile, scales, row);
  return matters;
}

}  // namespace

void linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    tile.dtype == Float::bfloat16 ? sums_of_row<BFloat16>(tile, sums, row) : sums_of_row<float>(tile, sums, row);
  }
}

bool linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales) {
  return tile.dtype == Float::bfloat16 ? gradients_of_tile<BFloat16>(tile, scales)
                                       : gradients_of_tile<float>(tile, scales);
}

void run_tasks(void (*task)(void*, int64_t), void* context, int64_t count, int threads) {
  on_threads(threads, count > 1, [&](const Member& member) {
    member.as_free(count, 1, [&](int64_t index) { task(context, index); });
  });
}

}  // namespace ggm::cpu::GGM_ISA
