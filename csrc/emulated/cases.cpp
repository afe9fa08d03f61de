// Every kernel of csrc/cuda on small inputs, as a program: what sanitizers look at. Memory is allocated by the element,
// so that AddressSanitizer sees the first byte beyond. Results are not compared here: the Python suites do that.
//
//   cases [NAME ..]   those whose names begin with NAME; all
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulated/emulator.h"
#include "kernels.h"
#include "numerics/half.h"

namespace {

using ggm::Float;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Numbers that are the same on every run.
class Numbers {
 public:
  uint64_t below(uint64_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % bound;
  }
  float within(float low, float high) { return low + (high - low) * static_cast<float>(below(1 << 20)) / (1 << 20); }

 private:
  uint64_t state_ = 1;
};

Numbers numbers;

std::vector<float> floats(int64_t size, float low, float high) {
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = numbers.within(low, high);
  return values;
}

std::vector<int64_t> ids(int64_t size, int64_t bound) {
  std::vector<int64_t> values(static_cast<size_t>(size));
  for (int64_t& value : values) value = static_cast<int64_t>(numbers.below(static_cast<uint64_t>(bound)));
  return values;
}

std::vector<int32_t> narrowed(const std::vector<int64_t>& wide) { return {wide.begin(), wide.end()}; }

std::vector<uint8_t> flags(int64_t size) {
  std::vector<uint8_t> values(static_cast<size_t>(size));
  for (uint8_t& value : values) value = numbers.below(4) == 0;
  return values;
}

// Values of a dtype, in bytes.
std::vector<uint8_t> values_of(Float dtype, const std::vector<float>& values) {
  const size_t bytes = dtype == Float::float32 ? 4 : 2;
  std::vector<uint8_t> packed(values.size() * bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    ggm::BFloat16 brain;
    ggm::Float16 half;
    ggm::round_to(values[i], brain);
    ggm::round_to(values[i], half);
    const void* from = dtype == Float::float32    ? static_cast<const void*>(&values[i])
                       : dtype == Float::bfloat16 ? static_cast<const void*>(&brain)
                                                  : static_cast<const void*>(&half);
    memcpy(&packed[i * bytes], from, bytes);
  }
  return packed;
}

void expect_no_error(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

enum class NoiseOf { uniform, mask, table };  // with a table come all other options

struct CorruptCase {
  int64_t batch, length;
  int bytes;
  NoiseOf noise;
};

void run(const CorruptCase& c) {
  constexpr int64_t kVocab = 17;
  const int64_t size = c.batch * c.length;
  const auto wide = ids(size, kVocab);
  const auto narrow = narrowed(wide);
  auto wide_out = wide;
  auto narrow_out = narrow;
  const auto keep = floats(c.noise == NoiseOf::table ? size : c.batch, 0, 1);
  const auto frozen = flags(size);
  const auto samples = ids(c.batch, int64_t{1} << 40);
  std::vector<ggm::AliasRow> noise(kVocab);
  for (auto& row : noise) row = {static_cast<uint32_t>(numbers.below(1ull << 32)), static_cast<uint32_t>(numbers.below(kVocab))};
  std::vector<uint8_t> is_signal(static_cast<size_t>(size));
  const int64_t step = 3;
  ggm::CorruptArgs args = {};
  args.tokens = c.bytes == 8 ? static_cast<const void*>(wide.data()) : narrow.data();
  args.token_bytes = c.bytes;
  args.keep_prob = keep.data();
  args.keep_row_stride = 1;
  args.noise = {nullptr, c.noise == NoiseOf::mask ? kVocab : -1, kVocab};
  args.noisy = c.bytes == 8 ? static_cast<void*>(wide_out.data()) : narrow_out.data();
  args.is_signal = is_signal.data();
  args.batch = c.batch;
  args.length = c.length;
  args.token_bound = kVocab;
  args.seed = 5;
  args.step = step;
  if (c.noise == NoiseOf::table) {
    args.noise.table = noise.data();
    args.keep_per_position = true;
    args.frozen = frozen.data();
    args.sample_ids = samples.data();
    args.step_pointer = &step;
  }
  expect_no_error(ggm::cuda::corrupt(args, nullptr, 0));
}

struct CommitCase {
  Float dtype;
  int64_t batch, length;
  int bytes;
  bool with_everything;
};

void run(const CommitCase& c) {
  const int64_t size = c.batch * c.length;
  auto wide = ids(size, 17);
  auto narrow = narrowed(wide);
  const auto proposal = ids(size, 17);
  // Few different scores: many are equal.
  auto scores = floats(size, -3, 0);
  for (float& score : scores) score = static_cast<float>(static_cast<int>(score * 8)) / 8;
  const auto packed = values_of(c.dtype, scores);
  const auto eligible = flags(size);
  std::vector<uint8_t> accepted(static_cast<size_t>(size));
  const auto counts = ids(c.batch, c.length + 1), samples = ids(c.batch, int64_t{1} << 40);
  const auto budgets = floats(c.batch, 0, static_cast<float>(c.length));
  const int64_t step = 3;
  const bool all = c.with_everything;
  const ggm::CommitArgs args = {
      {c.bytes == 8 ? static_cast<void*>(wide.data()) : narrow.data(), c.length, 1},
      c.bytes,
      {proposal.data(), c.length, 1},
      8,
      {packed.data(), c.length, 1},
      c.dtype,
      {all ? eligible.data() : nullptr, c.length, 1},
      {all ? accepted.data() : nullptr, c.length, 1},
      {c.length / 2, all ? counts.data() : nullptr, 1},
      {-kInfinity, nullptr, 0},
      {kInfinity, all ? budgets.data() : nullptr, 1},
      all,
      all,
      {nullptr, -1, 17},
      all ? samples.data() : nullptr,
      c.batch,
      c.length,
      5,
      all ? 0 : step,
      all ? &step : nullptr};
  expect_no_error(ggm::cuda::commit(args, nullptr, 0));
}

struct LossCase {
  Float dtype;
  bool linear;
  int64_t rows, count, hidden_size;
};

// Candidates in the order of what they name, and where each came from; -1 first.
void sort_entries(std::vector<int64_t>& entries, std::vector<int64_t>& order) {
  order.resize(entries.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return entries[a] < entries[b]; });
  std::vector<int64_t> sorted(entries.size());
  for (size_t i = 0; i < order.size(); ++i) sorted[i] = entries[order[i]];
  entries = sorted;
}

void run(const LossCase& c) {
  constexpr int64_t kVocab = 30;
  const size_t bytes = c.dtype == Float::float32 ? 4 : 2;
  const int64_t width = c.linear ? c.hidden_size : kVocab, size = c.rows * c.count;
  const auto hidden = values_of(c.dtype, floats(c.rows * width, -1, 1));
  const auto weight = values_of(c.dtype, floats(kVocab * c.hidden_size, -1, 1));
  const auto bias = values_of(c.dtype, floats(kVocab, -1, 1));
  const auto offset = floats(c.rows, -1, 1), signal = floats(size, 0, 1), noise = floats(size, 0, 1);
  auto candidates = ids(size, kVocab);
  if (size > 2) candidates[0] = -5, candidates[1] = int64_t{1} << 40;
  std::vector<float> loss(c.rows), logits(size);
  const ggm::SigmoidBceArgs args = {c.dtype,
                                    c.linear,
                                    hidden.data(),
                                    width,
                                    c.linear ? weight.data() : nullptr,
                                    c.hidden_size,
                                    c.linear ? bias.data() : nullptr,
                                    offset.data(),
                                    candidates.data(),
                                    8,
                                    signal.data(),
                                    c.count,
                                    1,
                                    noise.data(),
                                    c.count,
                                    1,
                                    c.rows,
                                    c.count,
                                    kVocab,
                                    width};
  expect_no_error(ggm::cuda::sigmoid_bce(args, loss.data(), logits.data(), nullptr, 0));

  const auto gradient = floats(c.rows, -1, 1);
  std::vector<uint8_t> of_hidden(hidden.size()), of_weight(weight.size()), of_bias(bias.size());
  std::vector<int64_t> entries = candidates, order;
  if (!c.linear) {
    for (int64_t i = 0; i < size; ++i) {
      const bool legal = candidates[i] >= 0 && candidates[i] < kVocab;
      entries[i] = legal ? i / c.count * kVocab + candidates[i] : -1;
    }
  }
  sort_entries(entries, order);
  std::vector<uint8_t> of_logits(c.rows * kVocab * bytes);
  constexpr int64_t kPlaces = 5;  // of tokens that are shared, too: the first ones
  const auto shared_hidden = floats(c.rows * width, -1, 1), shared_bias = floats(kPlaces, -1, 1);
  const auto shared_weight = floats(kPlaces * width, -1, 1);
  std::vector<int64_t> places = candidates;
  for (int64_t& place : places) place = place >= 0 && place < kPlaces ? place : -1;
  const ggm::SigmoidBceGradients gradients = {gradient.data(),
                                              logits.data(),
                                              c.linear ? of_hidden.data() : nullptr,
                                              c.linear ? of_weight.data() : nullptr,
                                              c.linear ? of_bias.data() : nullptr,
                                              c.linear ? nullptr : of_logits.data(),
                                              c.linear ? shared_hidden.data() : nullptr,
                                              c.linear ? shared_weight.data() : nullptr,
                                              c.linear ? shared_bias.data() : nullptr,
                                              c.linear ? places.data() : nullptr};
  expect_no_error(ggm::cuda::sigmoid_bce_backward(args, gradients, entries.data(), order.data(), nullptr, 0));
}

struct SharedCase {
  Float dtype;
  int64_t rows, columns;
  bool everything;
};

void run(const SharedCase& c) {
  const int64_t stride = c.columns + 3;
  auto logits = floats((c.rows - 1) * stride + c.columns, -9, 9);
  const auto bias = floats(c.columns, -1, 1), offset = floats(c.rows, -1, 1), weight = floats(c.columns, 0, 1);
  const ggm::SharedTile tile = {logits.data(),
                                stride,
                                c.everything ? bias.data() : nullptr,
                                c.everything ? offset.data() : nullptr,
                                weight.data(),
                                c.rows,
                                c.columns};
  std::vector<double> sums(c.rows);
  expect_no_error(ggm::cuda::shared_sigmoid_bce(tile, sums.data(), nullptr, 0));
  const auto row_gradient = floats(c.rows, -1, 1);
  const bool in_place = c.dtype == Float::float32;
  std::vector<uint16_t> rounded(in_place ? 0 : c.rows * c.columns);
  const ggm::SharedGradientTile out = {c.dtype, in_place ? static_cast<void*>(logits.data()) : rounded.data(),
                                       in_place ? stride : c.columns};
  expect_no_error(ggm::cuda::shared_sigmoid_bce_backward(tile, row_gradient.data(), out, nullptr, 0));
}

struct CrossEntropyCase {
  Float dtype;
  int64_t rows, tokens;
};

void run(const CrossEntropyCase& c) {
  const auto [dtype, rows, tokens] = c;
  auto products = values_of(dtype, floats(rows * tokens, -1, 1));
  const auto bias = floats(tokens, -1, 1), shift = floats(rows, -1, 1), scale = floats(rows, 0, 1);
  auto targets = ids(rows, tokens);
  targets[0] = -100;
  const auto shifted = ids(rows, tokens);
  const ggm::CrossEntropyTile tile = {products.data(), dtype, tokens, rows, 0, tokens, bias.data(), 5.0f,
                                      targets.data(),  shift.data(), shifted.data()};
  std::vector<float> top(rows), mass(rows), target_logit(rows), of_bias(tokens);
  const ggm::CrossEntropySums sums = {top.data(), mass.data(), target_logit.data()};
  expect_no_error(ggm::cuda::linear_cross_entropy(tile, sums, nullptr, 0));
  const ggm::CrossEntropyScales scales = {top.data(),   mass.data(), scale.data(),
                                          scale.data(), 0.0f,        of_bias.data()};
  expect_no_error(ggm::cuda::linear_cross_entropy_backward(tile, scales, nullptr, 0));
}

enum class Law { plain, greedy, filtered };

struct StepCase {
  Float dtype;
  Law law;
  bool keeps;
  int64_t rows, vocab;
  int token_bytes;
  bool mixes = false;
};

void run(const StepCase& c) {
  constexpr int64_t kBatch = 2;
  const int64_t length = c.rows + 3, size = kBatch * c.rows;
  auto wide = ids(kBatch * length, c.vocab);
  auto narrow = narrowed(wide);
  std::vector<int64_t> positions(c.rows);
  for (int64_t k = 0; k < c.rows; ++k) positions[k] = (k * 2 + 1) % length;
  if (length % 2 == 0) {
    for (int64_t k = 0; k < c.rows; ++k) positions[k] = length - 1 - k;
  }
  const auto logits = values_of(c.dtype, floats(size * c.vocab, -4, 4));
  const auto rate = floats(size, 0.1f, 0.9f), noise = floats(c.vocab, -9, -1);
  const auto frozen = flags(kBatch * length);
  const auto samples = ids(kBatch, int64_t{1} << 40);
  std::vector<float> log_sum_exp(size), log_prob(size), keep_prob(size), thresholds(2 * size);
  const bool filtered = c.law == Law::filtered;
  ggm::GlauberArgs args = {};
  args.tokens = c.token_bytes == 8 ? static_cast<void*>(wide.data()) : narrow.data();
  args.token_bytes = c.token_bytes;
  args.token_row_stride = length;
  args.token_stride = 1;
  args.positions = positions.data();
  args.batch = kBatch;
  args.length = length;
  args.count = c.rows;
  args.vocab_size = c.vocab;
  args.seed = 1;
  args.step = 2;
  args.inverse_temperature = filtered ? 1.25f : 1.0f;
  args.greedy = c.law == Law::greedy;
  args.top_k = filtered ? std::max<int64_t>(1, c.vocab / 3) : c.vocab;
  args.top_p = filtered ? 0.9 : 1.0;
  args.log_min_p = filtered ? -6.0f : -kInfinity;
  args.log_prob = log_prob.data();
  if (c.keeps) {
    args.noise_rate = rate.data();
    args.noise_row_stride = c.rows;
    args.noise_stride = 1;
    args.noise_log_probs = noise.data();
    args.normalize = true;
    args.frozen = frozen.data();
    args.sample_ids = samples.data();
    args.log_sum_exp = log_sum_exp.data();
    args.keep_prob = keep_prob.data();
  }
  const auto alpha = floats(size, 0.1f, 0.9f), shift = floats(size, -1, 1);
  if (c.mixes) {
    args.options.mixture = {alpha.data(), c.rows, 1};
    args.options.logit_shift = {shift.data(), c.rows, 1};
    args.options.softcap = 5.0f;
    args.options.noise_mask = -1;
    args.log_prob = nullptr;
  }
  const ggm::LogitsTile tile = {logits.data(), c.dtype,  c.rows, c.rows * c.vocab, c.vocab,
                                0,             nullptr, size,   0,                c.vocab, nullptr};
  if (filtered) expect_no_error(ggm::cuda::glauber_threshold(args, tile, thresholds.data(), nullptr, 0));
  const float* of_rows = filtered ? thresholds.data() : nullptr;
  std::vector<ggm::GroupRecord> groups(size * ((c.vocab + ggm::kRaceGroup - 1) / ggm::kRaceGroup));
  expect_no_error(ggm::cuda::glauber_race(args, tile, {groups.data(), nullptr, true, true}, of_rows, nullptr, 0));
}

void run_philox() {
  std::vector<uint32_t> counters(4 * 300), words(4 * 300);
  for (uint32_t& word : counters) word = static_cast<uint32_t>(numbers.below(1ull << 32));
  expect_no_error(ggm::cuda::philox({counters.data(), words.data(), 300, 7}, nullptr, 0));
}

using Case = std::pair<std::string, std::function<void()>>;

template <class Described>
Case named(const char* name, const Described& described) {
  return {name, [described] { run(described); }};
}

std::vector<Case> cases() {
  const Float f32 = Float::float32, bf16 = Float::bfloat16, f16 = Float::float16;
  return {
      {"philox", run_philox},
      named("corrupt whole int64", CorruptCase{3, 516, 8, NoiseOf::uniform}),
      named("corrupt whole int32, mask", CorruptCase{3, 516, 4, NoiseOf::mask}),
      named("corrupt odd int64, everything", CorruptCase{3, 301, 8, NoiseOf::table}),
      named("corrupt odd int32, everything", CorruptCase{5, 7, 4, NoiseOf::table}),
      named("corrupt whole int32, everything", CorruptCase{2, 520, 4, NoiseOf::table}),
      named("commit float32", CommitCase{f32, 3, 515, 8, false}),
      named("commit float32, everything", CommitCase{f32, 4, 77, 4, true}),
      named("commit float32 beyond what is held", CommitCase{f32, 2, 4500, 8, true}),
      named("commit bfloat16, everything", CommitCase{bf16, 2, 1030, 8, true}),
      named("commit float16, one position", CommitCase{f16, 3, 1, 4, true}),
      named("loss float32 packs", LossCase{f32, true, 40, 3, 200}),
      named("loss bfloat16 packs", LossCase{bf16, true, 40, 2, 136}),
      named("loss float16 one by one", LossCase{f16, true, 9, 5, 33}),
      named("loss float32 one by one", LossCase{f32, true, 12, 1, 5}),
      named("loss from logits float32", LossCase{f32, false, 11, 37, 0}),
      named("loss from logits bfloat16", LossCase{bf16, false, 70, 4, 0}),
      named("shared float32 in place", SharedCase{f32, 9, 70, true}),
      named("shared bfloat16", SharedCase{bf16, 3, 33, false}),
      named("shared float16", SharedCase{f16, 1, 1, true}),
      named("cross-entropy float32", CrossEntropyCase{f32, 5, 1000}),
      named("cross-entropy bfloat16", CrossEntropyCase{bf16, 3, 33}),
      named("step float32 few", StepCase{f32, Law::plain, false, 4, 33, 8}),
      named("step float32 parts", StepCase{f32, Law::plain, false, 2, 9001, 8}),
      named("step float32 one more than groups", StepCase{f32, Law::plain, false, 1, 2049, 8}),
      named("step float32 mixing", StepCase{f32, Law::plain, false, 4, 33, 8, true}),
      named("step bfloat16 mixing", StepCase{bf16, Law::filtered, true, 2, 1500, 4, true}),
      named("step bfloat16 parts, keeping", StepCase{bf16, Law::plain, true, 2, 9000, 4}),
      named("step float16 odd, keeping", StepCase{f16, Law::plain, true, 5, 701, 8}),
      named("step greedy", StepCase{f32, Law::greedy, true, 3, 5001, 8}),
      named("step filtered float32", StepCase{f32, Law::filtered, true, 3, 4099, 8}),
      named("step filtered bfloat16", StepCase{bf16, Law::filtered, false, 2, 8448, 4}),
      named("step filtered, more candidates than room", StepCase{f32, Law::filtered, false, 1, 12000, 8}),
      named("step filtered few", StepCase{f16, Law::filtered, true, 4, 9, 8}),
  };
}

}  // namespace

int main(int argc, char** argv) {
  for (const auto& [name, run_case] : cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= name.rfind(argv[i], 0) == 0;
    if (!wanted) continue;
    std::printf("%s\n", name.c_str());
    std::fflush(stdout);
    run_case();
  }
  return 0;
}
