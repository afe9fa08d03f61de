// Logits of a few rows: hidden times the transpose of weight. A library packs the weight before it multiplies, which few
// rows do not pay back. Here what is packed is hidden, and the weight is read once and where it lies. Up to seven rows
// wait for that alone: few_rows.h. More of them are the lanes below. A logit is summed in one order, so that in either
// its bits depend on nothing but its two rows.
#include "cpu/aligned_floats.h"
#include "cpu/broadcast_rows.h"
#include "cpu/few_rows.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace ggm::cpu::GGM_ISA {
#if defined(GGM_FUSES)
namespace {

// Tokens at a time, so that sums, one vector of weights and the hidden states fit the registers: for rows of two
// vectors and of one.
#if defined(__AVX512F__)
constexpr int kTokensOfTwo = 12, kTokensOfOne = 24;
#else
constexpr int kTokensOfTwo = 4, kTokensOfOne = 12;
#endif
constexpr int64_t kTerms = 256;  // of a sum before it is added to the others: one long chain would lose digits
constexpr int64_t kPart = 192;   // tokens that a thread takes at a time: a multiple of all of these

GGM_HD const float* floats(const void* data) { return static_cast<const float*>(data); }

// Rows of hidden, transposed: for each of hidden_size the lanes of `vectors` vectors, 0 past the last row.
struct Panel {
  const float* packed;
  int64_t first_row, rows, vectors;
};

// The rows of a product in panels of two vectors, the last of one where that is enough.
class Panels {
 public:
  explicit Panels(const SkinnyProduct& product) : product_(product), packed_(count() * size()) {
    for (int64_t i = 0; i < count(); ++i) pack(at(i), packed_.data() + i * size());
  }

  int64_t count() const { return (product_.rows + kRows - 1) / kRows; }

  Panel at(int64_t i) const {
    const int64_t left = product_.rows - i * kRows, rows = left < kRows ? left : kRows;
    return {packed_.data() + i * size(), i * kRows, rows, rows > kLanes ? 2 : 1};
  }

 private:
  static constexpr int64_t kRows = 2 * kLanes;

  int64_t size() const { return kRows * product_.factors.hidden_size; }

  void pack(const Panel& panel, float* packed) const {
    const int64_t lanes = panel.vectors * kLanes;
    for (int64_t k = 0; k < product_.factors.hidden_size; ++k) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const float* const first = floats(product_.factors.hidden) + panel.first_row * product_.factors.hidden_stride;
        packed[k * lanes + lane] = lane < panel.rows ? first[lane * product_.factors.hidden_stride + k] : 0.0f;
      }
    }
  }

  const SkinnyProduct& product_;
  const AlignedFloats packed_;
};

// four[j] holds four tokens of each of the lanes j, j + 4, ..
GGM_HD void store_fours(float* logits, int64_t stride, int64_t lanes, const Words (&four)[4]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= lanes) return;
    const char* const words = reinterpret_cast<const char*>(&four[lane % 4]) + lane / 4 * 16;
    memcpy(logits + lane * stride, words, 16);
  }
}

template <int kTokens, int kVectors>
GGM_HD void store(const SkinnyProduct& product, const Panel& panel, int64_t token,
                  Floats (&sums)[kTokens][kVectors]) {
  if (product.factors.bias != nullptr) {
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) sums[t][v] += floats(product.factors.bias)[token + t];
    }
  }
  float* const logits = static_cast<float*>(product.logits) + panel.first_row * product.logits_stride + token;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t lanes = panel.rows - v * kLanes < kLanes ? panel.rows - v * kLanes : kLanes;
    float* const of_lanes = logits + v * kLanes * product.logits_stride;
    if constexpr (kTokens % 4 == 0) {
      for (int t = 0; t < kTokens; t += 4) {
        Words four[4] = {(Words)sums[t][v], (Words)sums[t + 1][v], (Words)sums[t + 2][v], (Words)sums[t + 3][v]};
        transpose_fours(four[0], four[1], four[2], four[3]);
        store_fours(of_lanes + t, product.logits_stride, lanes, four);
      }
    } else {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        for (int t = 0; t < kTokens; ++t) of_lanes[lane * product.logits_stride + t] = sums[t][v][lane];
      }
    }
  }
}

// Logits of kTokens tokens from `token` on. On the way it asks for the weight of as many after them.
template <int kTokens, int kVectors>
GGM_HD void multiply(const SkinnyProduct& product, const Panel& panel, int64_t token) {
  Floats totals[kTokens][kVectors] = {};
  const float* const first = floats(product.factors.weight) + token * product.factors.weight_stride;
  const bool are_more = panel.first_row == 0 && token + 2 * kTokens <= product.tokens;
  const float* next = are_more ? first + kTokens * product.factors.weight_stride : first;
  BroadcastRows<kTokens> weight(first, product.factors.weight_stride);
  const float* hidden = panel.packed;
  const float* const end = hidden + product.factors.hidden_size * kVectors * kLanes;
  while (hidden != end) {
    Floats sums[kTokens][kVectors] = {};
    const int64_t left = end - hidden, most = kTerms * kVectors * kLanes;
    for (const float* const stop = hidden + (left < most ? left : most); hidden != stop; hidden += kVectors * kLanes) {
      Floats h[kVectors];
      for (int v = 0; v < kVectors; ++v) h[v] = load(hidden + v * kLanes);
      __builtin_prefetch(next, 0, 2);
      next += kTokens;
#pragma GCC unroll 24
      for (int t = 0; t < kTokens; ++t) {
        const Floats w = weight.of(t);
        for (int v = 0; v < kVectors; ++v) sums[t][v] = multiply_add(w, h[v], sums[t][v]);
      }
      weight.go_on();
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) totals[t][v] += sums[t][v];
    }
  }
  store(product, panel, token, totals);
}

template <int kTokens, int kVectors>
__attribute__((noinline)) void multiply_part(const SkinnyProduct& product, const Panel& panel, int64_t begin,
                                             int64_t end) {
  int64_t token = begin;
  for (; token + kTokens <= end; token += kTokens) multiply<kTokens, kVectors>(product, panel, token);
  for (; token < end; ++token) multiply<1, kVectors>(product, panel, token);
}

// do_part(begin, end) for parts of the tokens, on all threads.
template <class DoPart>
void in_parts(const SkinnyProduct& product, int threads, const DoPart& do_part) {
  const int64_t parts = (product.tokens + kPart - 1) / kPart;
  const bool is_much = product.rows * product.tokens * product.factors.hidden_size >= kParallelFrom;
  on_threads(threads, is_much, [&](const Member& member) {
    member.as_free(parts, 1, [&](int64_t part) {
      const int64_t begin = part * kPart;
      do_part(begin, begin + kPart < product.tokens ? begin + kPart : product.tokens);
    });
  });
}

template <class T>
void multiply_few_rows(const SkinnyProduct& product, int threads) {
  const FewRows<T> rows(product);
  in_parts(product, threads, [&](int64_t begin, int64_t end) { multiply_few_rows(product, rows, begin, end); });
}

void multiply_panels(const SkinnyProduct& product, int threads) {
  const Panels panels(product);
  in_parts(product, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < panels.count(); ++i) {
      const Panel panel = panels.at(i);
      if (panel.vectors == 2) multiply_part<kTokensOfTwo, 2>(product, panel, begin, end);
      else multiply_part<kTokensOfOne, 1>(product, panel, begin, end);
    }
  });
}

}  // namespace

bool skinny_product(const SkinnyProduct& product, int threads) {
  if (product.rows > kFewRows) {
    if (product.factors.dtype != Float::float32) return false;
    multiply_panels(product, threads);
    return true;
  }
  switch (product.factors.dtype) {
    case Float::float32:
      multiply_few_rows<float>(product, threads);
      return true;
    case Float::bfloat16:
      multiply_few_rows<BFloat16>(product, threads);
      return true;
    case Float::float16:
      multiply_few_rows<Float16>(product, threads);
      return true;
  }
  return false;
}

#else

bool skinny_product(const SkinnyProduct&, int) { return false; }

#endif
}  // namespace ggm::cpu::GGM_ISA
