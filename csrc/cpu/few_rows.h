// Logits of so few rows that reading the weight is all that they wait for: lanes are terms of a sum, and memory is asked
// for the weight a block of tokens ahead. Internal to each instruction set.
#pragma once

#include "cpu/aligned_floats.h"
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
      : size_(product.factors.hidden_size),
        vectors_((size_ + kLanes - 1) / kLanes),
        hidden_(product.rows * vectors_ * kLanes) {
    for (int64_t row = 0; row < product.rows; ++row) {
      const T* const from = static_cast<const T*>(product.factors.hidden) + row * product.factors.hidden_stride;
      for (int64_t v = 0; v < vectors_; ++v) {
        const Floats part = load_some(from + v * kLanes, many(v));
        memcpy(hidden_.data() + (row * vectors_ + v) * kLanes, &part, sizeof part);
      }
    }
  }

  GGM_HD_MEMBER int64_t whole() const { return size_ / kLanes; }  // vectors
  GGM_HD_MEMBER int64_t vectors() const { return vectors_; }
  GGM_HD_MEMBER int many(int64_t vector) const { return lanes_for(size_ - vector * kLanes); }
  GGM_HD_MEMBER Floats at(int64_t row, int64_t vector) const {
    return load(hidden_.data() + (row * vectors_ + vector) * kLanes);
  }

 private:
  const int64_t size_, vectors_;
  const AlignedFloats hidden_;
};

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
  const int64_t stride = product.factors.weight_stride;
  const T* const weight = static_cast<const T*>(product.factors.weight) + token * stride;
  const T* const later = weight + kTokens * stride;
  FewSums<kRows, kTokens> sums;
  Floats parts[kTokens];
  for (int64_t v = 0; v < rows.whole(); ++v) {
    for (int t = 0; t < kTokens; ++t) {
      parts[t] = load(weight + t * stride + v * kLanes);
      __builtin_prefetch(later + t * stride + v * kLanes, 0, 3);
    }
    sums.add(rows, v, parts);
  }
  for (int64_t v = rows.whole(); v < rows.vectors(); ++v) {
    for (int t = 0; t < kTokens; ++t) parts[t] = load_some(weight + t * stride + v * kLanes, rows.many(v));
    sums.add(rows, v, parts);
  }
  const T* const bias = static_cast<const T*>(product.factors.bias);
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
