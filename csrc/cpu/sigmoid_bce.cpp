#include "numerics/sigmoid_bce.h"

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/simd_float.h"

namespace ggm::cpu::GGM_ISA {
namespace {

constexpr int64_t kParallelFrom = 1 << 16;  // multiply-adds below which a second thread is not worth waking

template <class T>
GGM_HD const T* row_of(const void* base, int64_t row, int64_t stride) {
  return static_cast<const T*>(base) + row * stride;
}

GGM_HD int64_t candidate_at(const SigmoidBceArgs& args, int64_t index) {
  return args.candidate_bytes == 8 ? static_cast<const int64_t*>(args.candidates)[index]
                                   : static_cast<const int32_t*>(args.candidates)[index];
}

GGM_HD float signal_at(const SigmoidBceArgs& args, int64_t row, int64_t column) {
  return args.signal_weight[row * args.signal_row_stride + column * args.signal_stride];
}

GGM_HD float noise_at(const SigmoidBceArgs& args, int64_t row, int64_t column) {
  return args.noise_weight[row * args.noise_row_stride + column * args.noise_stride];
}

// Candidates side by side in lanes, in the order of their indices: row by row.
struct Cursor {
  int64_t row, column;
};

// Weights of `many` candidates from `at` on; what lanes beyond hold is of no account.
GGM_HD Floats weights_at(const SigmoidBceArgs& args, const float* weights, int64_t row_stride, int64_t stride, Cursor at,
                         int many) {
  if (row_stride == 0 && stride == 0) return Floats{} + weights[0];
  const float* from = weights + at.row * row_stride + at.column * stride;
  const bool in_line = stride == 1 && (row_stride == args.count || at.column + many <= args.count);
  if (in_line && many == kLanes) return load(from);
  Floats lanes = {};
  for (int lane = 0; lane < many; ++lane) {
    lanes[lane] = weights[at.row * row_stride + at.column * stride];
    if (++at.column == args.count) at = {at.row + 1, 0};
  }
  return lanes;
}

struct Weights {
  Floats signal, noise;
};

GGM_HD Weights weights_at(const SigmoidBceArgs& args, Cursor at, int many) {
  return {weights_at(args, args.signal_weight, args.signal_row_stride, args.signal_stride, at, many),
          weights_at(args, args.noise_weight, args.noise_row_stride, args.noise_stride, at, many)};
}

GGM_HD bool in_vocabulary(const SigmoidBceArgs& args, int64_t token) {
  return static_cast<uint64_t>(token) < static_cast<uint64_t>(args.vocab_size);
}

GGM_HD bool worth_threads(const SigmoidBceArgs& args) {
  return args.rows * args.count * (args.hidden_size + 16) >= kParallelFrom;
}

// Rows of weight lie at random places and are used once: the processor does not guess them, and waiting for each
// takes longer than its arithmetic. So a row is asked for this many candidates before its turn.
constexpr int64_t kAhead = 2;

// The row of weight whose turn comes kAhead candidates after `index`, or null.
template <class T>
GGM_HD const T* row_ahead(const SigmoidBceArgs& args, int64_t index) {
  if (index + kAhead >= args.rows * args.count) return nullptr;
  const int64_t token = candidate_at(args, index + kAhead);
  return in_vocabulary(args, token) ? row_of<T>(args.weight, token, args.weight_stride) : nullptr;
}

// Dot products of hidden and weight for candidates [begin, end), at most kDots.
template <class T>
void candidate_dots(const SigmoidBceArgs& args, int64_t begin, int64_t end, float* results) {
  const T *hidden[kDots], *weight[kDots];
  for (int i = 0; i < kDots; ++i) {
    const int64_t index = begin + i < end ? begin + i : begin;  // what is missing repeats the first
    hidden[i] = row_of<T>(args.hidden, index / args.count, args.hidden_stride);
    weight[i] = row_of<T>(args.weight, candidate_at(args, index), args.weight_stride);
  }
  float all[kDots];
  dots(hidden, weight, args.hidden_size, all);
  memcpy(results, all, sizeof(float) * (end - begin));
}

template <class Token>
bool all_in_vocabulary(const SigmoidBceArgs& args, const Token* tokens, int64_t size) {
  bool valid = true;
  for (int64_t i = 0; i < size; ++i) valid &= in_vocabulary(args, tokens[i]);
  return valid;
}

// Logits of the candidates of rows [begin, end), all of them in the vocabulary.
template <class T, class Token>
void logits_of_rows(const SigmoidBceArgs& args, const Token* tokens, int64_t begin, int64_t end, float* candidate_logits) {
  const int64_t last = end * args.count;
  for (int64_t index = begin * args.count; args.linear && index < last; index += kDots) {
    candidate_dots<T>(args, index, index + kDots < last ? index + kDots : last, candidate_logits + index);
  }
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * args.count;
    const T *logits = row_of<T>(args.hidden, row, args.hidden_stride), *bias = static_cast<const T*>(args.bias);
    float* f = candidate_logits + first;
    for (int64_t i = 0; !args.linear && i < args.count; ++i) f[i] = to_float(logits[tokens[first + i]]);
    for (int64_t i = 0; bias != nullptr && i < args.count; ++i) f[i] += to_float(bias[tokens[first + i]]);
    for (int64_t i = 0; args.offset != nullptr && i < args.count; ++i) f[i] += args.offset[row];
  }
}

constexpr int kPendingBlocks = 32;  // vectors that are added in float32 before they go to a sum in double precision

// Losses of rows [begin, end) from their candidates' logits. Sums in double precision: of a whole vocabulary's
// candidates float32 would keep five digits.
void sum_losses(const SigmoidBceArgs& args, int64_t begin, int64_t end, const float* candidate_logits, float* loss) {
  Cursor at = {begin, 0};
  double total = 0.0;
  Floats pending = {};
  int blocks = 0;
  const auto settle = [&] {
    for (int lane = 0; blocks > 0 && lane < kLanes; ++lane) total += pending[lane];
    pending = Floats{};
    blocks = 0;
  };
  const auto end_row = [&] {
    settle();
    loss[at.row] = static_cast<float>(total);
    at = {at.row + 1, 0};
    total = 0.0;
  };
  const int64_t last = end * args.count;
  int many = 0;
  for (int64_t index = begin * args.count; index < last; index += many) {
    // Long rows start with the first lane, wherever they are in the batch: their sums do not depend on it.
    many = lanes_for(args.count < kLanes ? last - index : args.count - at.column);
    const Floats f = load_some(candidate_logits + index, many);
    const Weights weights = weights_at(args, at, many);
    const Floats losses = loss_of(f, log1p_unit(exp_minus_abs(f)), weights.signal, weights.noise);
    if (at.column + kLanes <= args.count) {  // all of one row
      pending += losses;
      at.column += kLanes;
      if (++blocks == kPendingBlocks) settle();
      if (at.column == args.count) end_row();
      continue;
    }
    for (int lane = 0; lane < many; ++lane) {
      total += losses[lane];
      if (++at.column == args.count) end_row();
    }
  }
  while (args.count == 0 && at.row < end) end_row();
}

// Losses of rows [begin, end); false, and nothing is read at it, where a candidate is not in the vocabulary.
template <class T, class Token>
bool losses_of_rows(const SigmoidBceArgs& args, int64_t begin, int64_t end, float* loss, float* candidate_logits) {
  const Token* tokens = static_cast<const Token*>(args.candidates);
  if (!all_in_vocabulary(args, tokens + begin * args.count, (end - begin) * args.count)) return false;
  logits_of_rows<T>(args, tokens, begin, end, candidate_logits);
  sum_losses(args, begin, end, candidate_logits, loss);
  return true;
}

constexpr int64_t kPartWork = 1 << 16;  // multiply-adds of one part of the work, about

template <class T>
bool forward(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int threads) {
  const int64_t rows = kPartWork / (args.count * ((args.linear ? args.hidden_size : 0) + 16) + 1) + 1;
  const int64_t parts = (args.rows + rows - 1) / rows;
  bool valid = true;
  on_threads(threads, worth_threads(args), [&](const Member& member) {
    // Not shared out beforehand: a thread that sleeps takes tens of microseconds to wake.
    member.as_free(parts, 1, [&](int64_t part) {
      const int64_t row = part * rows, end = row + rows < args.rows ? row + rows : args.rows;
      if (!(args.candidate_bytes == 8 ? losses_of_rows<T, int64_t>(args, row, end, loss, candidate_logits)
                                      : losses_of_rows<T, int32_t>(args, row, end, loss, candidate_logits))) {
        refute(valid);
      }
    });
  });
  return valid;
}

GGM_HD float logit_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int64_t row,
                            int64_t column) {
  const float f = gradients.candidate_logits[row * args.count + column];
  return gradients.loss[row] * candidate_loss_derivative(f, signal_at(args, row, column), noise_at(args, row, column));
}

// Float32 sums, which are rounded once.
struct Sums {
  float* values;
  explicit Sums(int64_t size) : values(static_cast<float*>(std::malloc(sizeof(float) * (size + 1)))) {}
  ~Sums() { std::free(values); }
  Sums(const Sums&) = delete;
  Sums& operator=(const Sums&) = delete;
};

// Gradients of the logits of `many` candidates of a row, from a column on.
Floats logit_gradients(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int64_t row, int64_t column,
                       int many) {
  const Floats f = load_some(gradients.candidate_logits + row * args.count + column, many);
  const Weights weights = weights_at(args, {row, column}, many);
  return gradients.loss[row] * derivative_of(f, exp_minus_abs(f), weights.signal, weights.noise);
}

// One row of the logits' gradient. A repeated candidate adds to the ones before it: in float32, in `sums` of
// vocab_size zeros, which it leaves zero.
template <class T>
void row_logits_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int64_t row, T* out,
                         float* sums) {
  const int64_t first = row * args.count;
  for (int64_t column = 0; column < args.count; column += kLanes) {
    const int many = lanes_for(args.count - column);
    const Floats added = logit_gradients(args, gradients, row, column, many);
    for (int lane = 0; lane < many; ++lane) sums[candidate_at(args, first + column + lane)] += added[lane];
  }
  for (int64_t column = 0; column < args.count; ++column) {
    const int64_t token = candidate_at(args, first + column);
    if (sums[token] == 0.0f) continue;  // stored already, or nothing to add to the zero that is there
    round_to(sums[token], out[token]);
    sums[token] = 0.0f;
  }
}

// The same where candidates are not repeated, or T is float32: no sums but those in place.
template <class T>
void row_logits_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int64_t row, T* out) {
  for (int64_t column = 0; column < args.count; column += kLanes) {
    const int many = lanes_for(args.count - column);
    const Floats added = logit_gradients(args, gradients, row, column, many);
    for (int lane = 0; lane < many; ++lane) {
      T& entry = out[candidate_at(args, row * args.count + column + lane)];
      round_to(to_float(entry) + added[lane], entry);
    }
  }
}

template <class T>
void logits_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  const bool in_place = sizeof(T) == sizeof(float) || args.count == 1;
  on_threads(threads, worth_threads(args), [&](const Member& member) {
    Sums sums(in_place ? 0 : args.vocab_size);
    if (!in_place) memset(sums.values, 0, sizeof(float) * args.vocab_size);
    member.in_parts(args.rows, [&](int64_t row) {
      T* out = static_cast<T*>(gradients.logits) + row * args.vocab_size;
      if (in_place) {
        row_logits_gradient(args, gradients, row, out);
      } else {
        row_logits_gradient(args, gradients, row, out, sums.values);
      }
    });
  });
}

// Zeros, or what shared candidates add already: row `place` of it, if there is one.
void start_sums(float* sums, const float* shared, int64_t place, int64_t size) {
  if (shared == nullptr || place < 0) {
    memset(sums, 0, sizeof(float) * size);
  } else {
    memcpy(sums, shared + place * size, sizeof(float) * size);
  }
}

template <class T>
void hidden_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  on_threads(threads, worth_threads(args), [&](const Member& member) {
    Sums sums(args.hidden_size);
    member.in_parts(args.rows, [&](int64_t row) {
      start_sums(sums.values, gradients.shared_hidden, row, args.hidden_size);
      for (int64_t column = 0; column < args.count; ++column) {
        const int64_t index = row * args.count + column;
        const int64_t token = candidate_at(args, index);
        add_scaled(sums.values, logit_gradient(args, gradients, row, column),
                   row_of<T>(args.weight, token, args.weight_stride), args.hidden_size,
                   row_ahead<T>(args, index));
      }
      store_rounded(static_cast<T*>(gradients.hidden) + row * args.hidden_size, sums.values, args.hidden_size);
    });
  });
}

struct Entry {
  int64_t token, index;  // index into candidates
};

constexpr int kDigitBits = 11;
constexpr int64_t kDigits = 1 << kDigitBits;

// All candidates by token, those of one token in order: a radix sort, whose passes keep order. Its time does
// not depend on the vocabulary. `entries` and `spare` hold rows * count each; returns the one that is sorted.
Entry* sort_by_token(const SigmoidBceArgs& args, Entry* entries, Entry* spare) {
  const int64_t size = args.rows * args.count;
  for (int64_t index = 0; index < size; ++index) entries[index] = {candidate_at(args, index), index};
  for (int shift = 0; (args.vocab_size - 1) >> shift > 0; shift += kDigitBits) {
    int64_t starts[kDigits] = {};
    for (int64_t i = 0; i < size; ++i) ++starts[entries[i].token >> shift & (kDigits - 1)];
    int64_t start = 0;
    for (int64_t digit = 0; digit < kDigits; ++digit) {
      const int64_t many = starts[digit];
      starts[digit] = start;
      start += many;
    }
    for (int64_t i = 0; i < size; ++i) spare[starts[entries[i].token >> shift & (kDigits - 1)]++] = entries[i];
    Entry* sorted = spare;
    spare = entries;
    entries = sorted;
  }
  return entries;
}

// The gradient of one token's row, from its entries [begin, end).
template <class T>
void token_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, const Entry* begin,
                    const Entry* end, float* sums) {
  const int64_t token = begin->token;
  const int64_t place = gradients.places == nullptr ? -1 : gradients.places[begin->index];
  float bias_sum = 0.0f;
  start_sums(&bias_sum, gradients.shared_bias, place, 1);
  start_sums(sums, gradients.shared_weight, place, args.hidden_size);
  for (const Entry* entry = begin; entry < end; ++entry) {
    const int64_t row = entry->index / args.count;
    const float gradient = logit_gradient(args, gradients, row, entry->index % args.count);
    bias_sum += gradient;
    if (gradients.weight != nullptr) {
      add_scaled(sums, gradient, row_of<T>(args.hidden, row, args.hidden_stride), args.hidden_size);
    }
  }
  if (gradients.weight != nullptr) {
    store_rounded(static_cast<T*>(gradients.weight) + token * args.hidden_size, sums, args.hidden_size);
  }
  if (gradients.bias != nullptr) round_to(bias_sum, static_cast<T*>(gradients.bias)[token]);
}

template <class T>
void weight_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  const int64_t size = args.rows * args.count;
  Entry* entries = static_cast<Entry*>(std::malloc(2 * sizeof(Entry) * (size + 1)));
  const Entry* sorted = sort_by_token(args, entries, entries + size);
  on_threads(threads, worth_threads(args), [&](const Member& member) {
    Sums sums(args.hidden_size);
    member.as_free(size, 256, [&](int64_t i) {
      // Whoever meets the first entry of a token takes all of them.
      if (i > 0 && sorted[i - 1].token == sorted[i].token) return;
      int64_t end = i + 1;
      while (end < size && sorted[end].token == sorted[i].token) ++end;
      token_gradient<T>(args, gradients, sorted + i, sorted + end, sums.values);
    });
  });
  std::free(entries);
}

template <class T>
void backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  if (gradients.logits != nullptr) logits_gradient<T>(args, gradients, threads);
  if (gradients.hidden != nullptr) hidden_gradient<T>(args, gradients, threads);
  if (gradients.weight != nullptr || gradients.bias != nullptr) weight_gradient<T>(args, gradients, threads);
}

}  // namespace

bool sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int threads) {
  switch (args.dtype) {
    case Float::bfloat16:
      return forward<BFloat16>(args, loss, candidate_logits, threads);
    case Float::float16:
      return forward<Float16>(args, loss, candidate_logits, threads);
    default:
      return forward<float>(args, loss, candidate_logits, threads);
  }
}

void sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  switch (args.dtype) {
    case Float::bfloat16:
      return backward<BFloat16>(args, gradients, threads);
    case Float::float16:
      return backward<Float16>(args, gradients, threads);
    default:
      return backward<float>(args, gradients, threads);
  }
}

}  // namespace ggm::cpu::GGM_ISA
