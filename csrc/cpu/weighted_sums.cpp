// Weighted sums of the rows of a matrix, added to float32 totals: a product of few rows, whose sums have one order on
// any number of threads.
#include "cpu/broadcast_rows.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace ggm::cpu::GGM_ISA {
#if defined(GGM_FUSES)
namespace {

// Totals at a time, so that they, a weight and a part of a row fit the registers.
#if defined(__AVX512F__)
constexpr int kTotals = 8, kVectors = 3;
#else
constexpr int kTotals = 4, kVectors = 2;
#endif
constexpr int64_t kChunk = 128;  // rows whose columns stay in the first cache for all totals

// Columns of a row: whole vectors, or the last ones, of which `many` are in one.
struct Columns {
  int64_t begin;
  int vectors, many;
};

// Columns of some rows, one row after the other: where they lie, strides like powers of 2 push each other out of cache.
template <int kOfRow>
GGM_HD void gather(const WeightedSums& of, int64_t begin, int64_t end, const Columns& columns, Floats* gathered) {
  const float* row = of.rows + begin * of.row_stride + columns.begin;
  for (int64_t term = begin; term < end; ++term, row += of.row_stride) {
    for (int v = 0; v < kOfRow; ++v) {
      *gathered++ = load_some(row + v * kLanes, columns.many);
    }
  }
}

// Some terms of kTotals rows of totals from `total` on, of which those before `first_new` are done with. On the way the
// first of them ask for what is gathered next, `later` and as many rows on.
template <int kOfRow>
GGM_HD void add(const WeightedSums& of, int64_t begin, int64_t end, int64_t total, int64_t first_new,
                const Columns& columns, const Floats* gathered, const float* later) {
  Floats sums[kTotals][kOfRow] = {};
  BroadcastRows<kTotals> weights(of.weights + total * of.weight_stride + begin, of.weight_stride);
  for (const Floats* const stop = gathered + (end - begin) * kOfRow; gathered != stop; gathered += kOfRow) {
    Floats parts[kOfRow];
    for (int v = 0; v < kOfRow; ++v) parts[v] = gathered[v];
    if (first_new == 0) {
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(later + v * kLanes, 0, 3);
      later += of.row_stride;
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTotals; ++t) {
      const Floats w = weights.of(t);
      for (int v = 0; v < kOfRow; ++v) sums[t][v] = multiply_add(w, parts[v], sums[t][v]);
    }
    weights.go_on();
  }
  for (int t = 0; t < kTotals; ++t) {
    if (total + t < first_new) continue;
    float* const to = of.totals + (total + t) * of.total_stride + columns.begin;
    for (int v = 0; v < kOfRow; ++v) {
      store_some(to + v * kLanes, load_some(to + v * kLanes, columns.many) + sums[t][v], columns.many);
    }
  }
}

template <int kOfRow>
__attribute__((noinline)) void add_part(const WeightedSums& of, int64_t begin, int64_t end, const Columns& columns,
                                        const float* later) {
  Floats gathered[kChunk * kOfRow];
  gather<kOfRow>(of, begin, end, columns, gathered);
  for (int64_t first = 0; first < of.count; first += kTotals) {
    // The last ones overlap: there are no fewer than kTotals.
    const int64_t total = first + kTotals <= of.count ? first : of.count - kTotals;
    add<kOfRow>(of, begin, end, total, first, columns, gathered, later);
  }
}

// Parts of the columns, widest first.
GGM_HD Columns columns_of(int64_t part, int64_t columns) {
  const int64_t wide = columns / (kVectors * kLanes), begin = wide * kVectors * kLanes;
  if (part < wide) return {part * kVectors * kLanes, kVectors, kLanes};
  const int64_t at = begin + (part - wide) * kLanes;
  return {at, 1, lanes_for(columns - at)};
}

GGM_HD int64_t parts_of(int64_t columns) {
  const int64_t wide = columns / (kVectors * kLanes);
  return wide + (columns - wide * kVectors * kLanes + kLanes - 1) / kLanes;
}

// Chunk after chunk, so that its weights stay in the first cache, too, for all of these parts.
GGM_HD void add_parts(const WeightedSums& of, int64_t first_part, int64_t last_part) {
  for (int64_t begin = 0; begin < of.terms; begin += kChunk) {
    const int64_t end = begin + kChunk < of.terms ? begin + kChunk : of.terms;
    for (int64_t part = first_part; part < last_part; ++part) {
      const Columns columns = columns_of(part, of.columns);
      const bool is_last = part + 1 == last_part;
      const Columns next = columns_of(is_last ? first_part : part + 1, of.columns);
      const float* const later = of.rows + (is_last ? end : begin) * of.row_stride + next.begin;
      if (columns.vectors == kVectors) add_part<kVectors>(of, begin, end, columns, later);
      else add_part<1>(of, begin, end, columns, later);
    }
  }
}

}  // namespace

bool add_weighted_sums(const WeightedSums& of, int threads) {
  if (of.count < kTotals) return false;
  const bool is_much = of.count * of.terms * of.columns >= kParallelFrom;
  const int64_t parts = parts_of(of.columns);
  on_threads(threads, is_much, [&](const Member& member) {
    add_parts(of, member.thread * parts / member.threads, (member.thread + 1) * parts / member.threads);
  });
  return true;
}

#else

bool add_weighted_sums(const WeightedSums&, int) { return false; }

#endif
}  // namespace ggm::cpu::GGM_ISA
