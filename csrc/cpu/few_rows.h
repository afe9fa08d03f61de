// Logits of so few rows that reading the weight is all that they wait for: lanes are terms of a sum, and memory is asked
// for the weight a block of tokens ahead. Internal to each instruction set.
#pragma once

#include <cstdlib>

#include "cpu/simd_float.h"
#include "kernels.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kFewRows = 7;

// Tokens at a time, so that sums, weights and a hidden state fit the registers.
GGM_HD constexpr int tokens_of(int rows) {
#if defined(__AVX512F__)
  return rows <= 5 ? 4 : 2;
#else
  return rows <= 2 ? 4 : rows <= 5 ? 2 : 1;
#endif
}

// The few rows of hidden in float32, 0 past their ends.
template <class T>
class FewRows {
 public:
  explicit FewRows(const SkinnyProduct& product)
      : vectors_((product.hidden_size + kLanes - 1) / kLanes), rest_(static_cast<int>(product.hidden_size % kLanes)) {
    const int64_t size = vectors_ * kLanes;
    hidden_ = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * static_cast<size_t>(kFewRows * size + 64)
                                                             / 64 * 64));
    for (int64_t row = 0; row < product.rows; ++row) {
      const T* const from = static_cast<const T*>(product.hidden) + row * product.hidden_stride;
      for (int64_t k = 0; k < size; ++k) hidden_[row * size + k] = k < product.hidden_size ? to_float(from[k]) : 0.0f;
    }
  }
  ~FewRows() { std::free(hidden_); }
  FewRows(const FewRows&) = delete;
  FewRows& operator=(const FewRows&) = delete;

  GGM_HD_MEMBER int64_t vectors() const { return vectors_; }
  GGM_HD_MEMBER int rest() const { return rest_; }  // of the last vector, where it is not whole
  GGM_HD_MEMBER Floats at(int64_t row, int64_t vector) const {
    return load(hidden_ + (row * vectors_ + vector) * kLanes);
  }

 private:
  const int64_t vectors_;
  const int rest_;
  float* hidden_;
};

template <class T>
GGM_HD Floats load_first(const T* from, int count) {
  Floats lanes = {};
  for (int lane = 0; lane < count; ++lane) lanes[lane] = to_float(from[lane]);
  return lanes;
}

template <int kRows, int kTokens>
struct FewSums {
  Floats of[kTokens][kRows] = {};

  template <class T>
  GGM_HD_MEMBER void add(const FewRows<T>& rows, int64_t vector, const Floats (&weight)[kTokens]) {
    for (int row = 0; row < kRows; ++row) {
      const Floats h = rows.at(row, vector);
      for (int t = 0; t < kTokens; ++t) of[t][row] = multiply_add(weight[t], h, of[t][row]);
    }
  }
};

template <class T, int kRows, int kTokens>
GGM_HD void multiply_few(const SkinnyProduct& product, const FewRows<T>& rows, int64_t token) {
  const T* weight = static_cast<const T*>(product.weight) + token * product.weight_stride;
  const T* const later = weight + kTokens * product.weight_stride;
  FewSums<kRows, kTokens> sums;
  Floats parts[kTokens];
  const int64_t whole = rows.rest() == 0 ? rows.vectors() : rows.vectors() - 1;
  for (int64_t v = 0; v < whole; ++v) {
    for (int t = 0; t < kTokens; ++t) {
      parts[t] = load(weight + t * product.weight_stride + v * kLanes);
      __builtin_prefetch(later + t * product.weight_stride + v * kLanes, 0, 3);
    }
    sums.add(rows, v, parts);
  }
  if (rows.rest() != 0) {
    for (int t = 0; t < kTokens; ++t) {
      parts[t] = load_first(weight + t * product.weight_stride + whole * kLanes, rows.rest());
    }
    sums.add(rows, whole, parts);
  }
  const T* const bias = static_cast<const T*>(product.bias);
  for (int row = 0; row < kRows; ++row) {
    T* const logits = static_cast<T*>(product.logits) + row * product.logits_stride + token;
    for (int t = 0; t < kTokens; ++t) {
      const float g = tree_sum(sums.of[t][row]);
      round_to(bias == nullptr ? g : g + to_float(bias[token + t]), logits[t]);
    }
  }
}

template <class T, int kRows>
__attribute__((noinline)) void multiply_few_rows(const SkinnyProduct& product, const FewRows<T>& rows, int64_t begin,
                                                 int64_t end) {
  constexpr int kTokens = tokens_of(kRows);
  int64_t token = begin;
  for (; token + kTokens <= end; token += kTokens) multiply_few<T, kRows, kTokens>(product, rows, token);
  for (; token < end; ++token) multiply_few<T, kRows, 1>(product, rows, token);
}

// Logits of the tokens from `begin` to `end`.
template <class T>
GGM_HD void multiply_few_rows(const SkinnyProduct& product, const FewRows<T>& rows, int64_t begin, int64_t end) {
  switch (product.rows) {
    case 1:
      return multiply_few_rows<T, 1>(product, rows, begin, end);
    case 2:
      return multiply_few_rows<T, 2>(product, rows, begin, end);
    case 3:
      return multiply_few_rows<T, 3>(product, rows, begin, end);
    case 4:
      return multiply_few_rows<T, 4>(product, rows, begin, end);
    case 5:
      return multiply_few_rows<T, 5>(product, rows, begin, end);
    case 6:
      return multiply_few_rows<T, 6>(product, rows, begin, end);
    default:
      return multiply_few_rows<T, 7>(product, rows, begin, end);
  }
}

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
