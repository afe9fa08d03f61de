// Python's way into the core: integers that are addresses, sizes, a thread count or a stream handle.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "numerics/counter.h"
#include "step_plan.h"

// Compiled twice: as _native, and with GGM_ON_HOST as _emulated, whose csrc/cuda runs on the CPU.
#if defined(GGM_ON_HOST)
#include "emulated/bindings.h"
#define GGM_WITH_CUDA
#define GGM_MODULE _emulated
#else
#define GGM_MODULE _native
#endif

namespace py = pybind11;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ggm::CorruptArgs corrupt_args(uintptr_t tokens, int64_t token_bytes, uintptr_t keep_prob, bool keep_per_position,
                              int64_t keep_row_stride, uintptr_t frozen, uintptr_t sample_ids, uintptr_t noise,
                              int64_t mask_id, uintptr_t noisy, uintptr_t is_signal, int64_t batch, int64_t length,
                              int64_t vocab_size, int64_t token_bound, uint64_t seed, int64_t step,
                              uintptr_t step_pointer, uint32_t stream) {
  return {pointer<const void>(tokens),
          token_bytes,
          pointer<const float>(keep_prob),
          keep_per_position,
          keep_row_stride,
          pointer<const uint8_t>(frozen),
          pointer<const int64_t>(sample_ids),
          {pointer<const ggm::AliasRow>(noise), mask_id, vocab_size},
          pointer<void>(noisy),
          pointer<uint8_t>(is_signal),
          batch,
          length,
          token_bound,
          seed,
          step,
          pointer<const int64_t>(step_pointer),
          stream};
}

ggm::CommitArgs commit_args(
    uintptr_t tokens, int64_t token_bytes, int64_t token_row_stride, int64_t token_stride, uintptr_t proposal,
    int64_t proposal_bytes, int64_t proposal_row_stride, int64_t proposal_stride, uintptr_t score, int dtype,
    int64_t score_row_stride, int64_t score_stride, uintptr_t eligible, int64_t eligible_row_stride,
    int64_t eligible_stride, uintptr_t accepted, int64_t accepted_row_stride, int64_t accepted_stride, int64_t count,
    uintptr_t counts, int64_t counts_stride, float threshold, uintptr_t thresholds, int64_t thresholds_stride,
    float budget, uintptr_t budgets, int64_t budgets_stride, bool has_budget, bool noises_rest, uintptr_t noise,
    int64_t mask_id, int64_t vocab_size, uintptr_t sample_ids, int64_t batch, int64_t length, uint64_t seed,
    int64_t step, uintptr_t step_pointer) {
  return {{pointer<void>(tokens), token_row_stride, token_stride},
          token_bytes,
          {pointer<const void>(proposal), proposal_row_stride, proposal_stride},
          proposal_bytes,
          {pointer<const void>(score), score_row_stride, score_stride},
          static_cast<ggm::Float>(dtype),
          {pointer<const uint8_t>(eligible), eligible_row_stride, eligible_stride},
          {pointer<uint8_t>(accepted), accepted_row_stride, accepted_stride},
          {count, pointer<const int64_t>(counts), counts_stride},
          {threshold, pointer<const float>(thresholds), thresholds_stride},
          {budget, pointer<const float>(budgets), budgets_stride},
          has_budget,
          noises_rest,
          {pointer<const ggm::AliasRow>(noise), mask_id, vocab_size},
          pointer<const int64_t>(sample_ids),
          batch,
          length,
          seed,
          step,
          pointer<const int64_t>(step_pointer)};
}

ggm::SigmoidBceArgs sigmoid_bce_args(int dtype, bool linear, uintptr_t hidden, int64_t hidden_stride, uintptr_t weight,
                                     int64_t weight_stride, uintptr_t bias, uintptr_t offset, uintptr_t candidates,
                                     int64_t candidate_bytes, uintptr_t signal_weight, int64_t signal_row_stride,
                                     int64_t signal_stride, uintptr_t noise_weight, int64_t noise_row_stride,
                                     int64_t noise_stride, int64_t rows, int64_t count, int64_t vocab_size,
                                     int64_t hidden_size) {
  return {static_cast<ggm::Float>(dtype),
          linear,
          pointer<const void>(hidden),
          hidden_stride,
          pointer<const void>(weight),
          weight_stride,
          pointer<const void>(bias),
          pointer<const float>(offset),
          pointer<const void>(candidates),
          candidate_bytes,
          pointer<const float>(signal_weight),
          signal_row_stride,
          signal_stride,
          pointer<const float>(noise_weight),
          noise_row_stride,
          noise_stride,
          rows,
          count,
          vocab_size,
          hidden_size};
}

ggm::SigmoidBceGradients sigmoid_bce_gradients(uintptr_t loss, uintptr_t candidate_logits, uintptr_t hidden,
                                               uintptr_t weight, uintptr_t bias, uintptr_t logits,
                                               uintptr_t shared_hidden, uintptr_t shared_weight,
                                               uintptr_t shared_bias, uintptr_t places) {
  return {pointer<const float>(loss),
          pointer<const float>(candidate_logits),
          pointer<void>(hidden),
          pointer<void>(weight),
          pointer<void>(bias),
          pointer<void>(logits),
          pointer<const float>(shared_hidden),
          pointer<const float>(shared_weight),
          pointer<const float>(shared_bias),
          pointer<const int64_t>(places)};
}

ggm::SharedTile shared_tile(uintptr_t logits, int64_t row_stride, uintptr_t bias, uintptr_t offset, uintptr_t weight,
                            int64_t rows, int64_t columns) {
  return {pointer<const float>(logits), row_stride, pointer<const float>(bias), pointer<const float>(offset),
          pointer<const float>(weight), rows,       columns};
}

ggm::SharedGradientTile shared_gradient_tile(int dtype, uintptr_t gradient, int64_t row_stride) {
  return {static_cast<ggm::Float>(dtype), pointer<void>(gradient), row_stride};
}

ggm::CrossEntropyTile cross_entropy_tile(uintptr_t products, int dtype, int64_t row_stride, int64_t rows,
                                         int64_t token_begin, int64_t tokens, uintptr_t bias, float softcap,
                                         uintptr_t targets, uintptr_t logit_shift, uintptr_t shifted_token) {
  return {pointer<void>(products),      static_cast<ggm::Float>(dtype), row_stride,
          rows,                         token_begin,                    tokens,
          pointer<const float>(bias),   softcap,                        pointer<const int64_t>(targets),
          pointer<const float>(logit_shift), pointer<const int64_t>(shifted_token)};
}

ggm::CrossEntropySums cross_entropy_sums(uintptr_t top, uintptr_t mass, uintptr_t target_logit) {
  return {pointer<float>(top), pointer<float>(mass), pointer<float>(target_logit)};
}

ggm::CrossEntropyScales cross_entropy_scales(uintptr_t top, uintptr_t log_mass, uintptr_t softmax_scale,
                                             uintptr_t target_scale, float negligible, uintptr_t bias) {
  return {pointer<const float>(top),          pointer<const float>(log_mass), pointer<const float>(softmax_scale),
          pointer<const float>(target_scale), negligible,                     pointer<float>(bias)};
}

ggm::GlauberArgs glauber_args(
    uintptr_t tokens, int64_t token_bytes, int64_t token_row_stride, int64_t token_stride, uintptr_t positions,
    int64_t position_row_stride, uintptr_t sample_ids, uintptr_t frozen, uintptr_t noise_rate, int64_t noise_row_stride,
    int64_t noise_stride, uintptr_t noise_log_probs, bool normalize, int64_t batch, int64_t length, int64_t count,
    int64_t vocab_size, uint64_t seed, int64_t step, uintptr_t step_pointer, float temperature, int64_t top_k,
    double top_p, float log_min_p, uintptr_t log_sum_exp, uintptr_t log_prob, uintptr_t keep_prob,
    const ggm::RowOptions& options) {
  return {pointer<void>(tokens),
          token_bytes,
          token_row_stride,
          token_stride,
          pointer<const int64_t>(positions),
          position_row_stride,
          pointer<const int64_t>(sample_ids),
          pointer<const uint8_t>(frozen),
          pointer<const float>(noise_rate),
          noise_row_stride,
          noise_stride,
          pointer<const float>(noise_log_probs),
          normalize,
          batch,
          length,
          count,
          vocab_size,
          seed,
          step,
          pointer<const int64_t>(step_pointer),
          temperature,
          ggm::inverse_of(temperature),
          temperature <= 0.0f,
          top_k,
          top_p,
          log_min_p,
          pointer<float>(log_sum_exp),
          pointer<float>(log_prob),
          pointer<float>(keep_prob),
          options};
}

ggm::LogitsTile logits_tile(uintptr_t logits, int dtype, int64_t group, int64_t group_stride, int64_t row_stride,
                            int64_t row_begin, uintptr_t row_ids, int64_t rows, int64_t token_begin, int64_t tokens,
                            uintptr_t bias) {
  return {pointer<const void>(logits),
          static_cast<ggm::Float>(dtype),
          group,
          group_stride,
          row_stride,
          row_begin,
          pointer<const int64_t>(row_ids),
          rows,
          token_begin,
          tokens,
          pointer<const void>(bias)};
}

ggm::Factors factors(int dtype, uintptr_t hidden, int64_t hidden_stride, uintptr_t weight, int64_t weight_stride,
                     uintptr_t bias, int64_t hidden_size) {
  return {static_cast<ggm::Float>(dtype), pointer<const void>(hidden), hidden_stride, pointer<const void>(weight),
          weight_stride,                  pointer<const void>(bias),   hidden_size};
}

// A class that Python makes by `make`, and that the other module, which has one of the same name, does not share.
template <class Struct, class Make>
void bind_struct(py::module_& module, const char* name, Make make) {
  py::class_<Struct>(module, name, py::module_local()).def(py::init(make));
}

// (address, stride of sequences, stride of rows): a value per row.
using RowValuesTuple = std::tuple<uintptr_t, int64_t, int64_t>;

template <class T>
void def_row_values(py::class_<ggm::RowOptions>& options, const char* name, ggm::RowValues<T> ggm::RowOptions::*member) {
  options.def_property(name, nullptr, [member](ggm::RowOptions& of, const RowValuesTuple& given) {
    of.*member = {pointer<const T>(std::get<0>(given)), std::get<1>(given), std::get<2>(given)};
  });
}

template <class T>
void def_address(py::class_<ggm::RowOptions>& options, const char* name, T* ggm::RowOptions::*member) {
  options.def_property(name, nullptr,
                       [member](ggm::RowOptions& of, uintptr_t address) { of.*member = pointer<T>(address); });
}

ggm::RowOptions row_options() {
  ggm::RowOptions options = {};
  options.noise_mask = -1;
  return options;
}

void bind_row_options(py::module_& module) {
  using Options = ggm::RowOptions;
  py::class_<Options> options(module, "RowOptions", py::module_local());
  options.def(py::init(&row_options))
      .def_readwrite("softcap", &Options::softcap)
      .def_readwrite("top_p_first", &Options::top_p_first)
      .def_readwrite("noise_mask", &Options::noise_mask)
      .def_readwrite("token_bound", &Options::token_bound);
  def_row_values(options, "seed", &Options::seed);
  def_row_values(options, "step", &Options::step);
  def_row_values(options, "temperature", &Options::temperature);
  def_row_values(options, "top_k", &Options::top_k);
  def_row_values(options, "top_p", &Options::top_p);
  def_row_values(options, "min_p", &Options::min_p);
  def_row_values(options, "logit_shift", &Options::logit_shift);
  def_row_values(options, "mixture", &Options::mixture);
  def_address(options, "noise_table", &Options::noise_table);
  def_address(options, "raw_log_prob", &Options::raw_log_prob);
  def_address(options, "entropy", &Options::entropy);
  def_address(options, "margin", &Options::margin);
  def_address(options, "argmax", &Options::argmax);
}

#if !defined(GGM_ON_HOST)
// The states of some rows' races, between tiles.
struct RowStates {
  explicit RowStates(int64_t rows) : of_row(static_cast<size_t>(rows), ggm::row_start()) {}
  std::vector<ggm::RowState> of_row;
};

std::vector<uint32_t> counter(uint32_t stream, uint32_t step, uint64_t sample_id, uint32_t position_block,
                              uint32_t vocab_block) {
  return {ggm::counter_word0(stream, sample_id, vocab_block), position_block, ggm::counter_word2(sample_id), step};
}

// A Python function called by the threads of a loop; the first exception ends it and is raised.
struct PythonTask {
  explicit PythonTask(const py::function& of) : function(of) {}
  const py::function& function;
  std::exception_ptr error;  // guarded, like all of Python, by the interpreter's lock
};

void call_python(void* context, int64_t index) {
  const py::gil_scoped_acquire lock;
  PythonTask& task = *static_cast<PythonTask*>(context);
  if (task.error) return;
  try {
    task.function(index);
  } catch (...) {
    task.error = std::current_exception();
  }
}

void run_tasks(const py::function& function, int64_t count, int threads) {
  PythonTask task(function);
  {
    const py::gil_scoped_release release;
    ggm::cpu::run_tasks(call_python, &task, count, threads);
  }
  if (task.error) std::rethrow_exception(task.error);
}

int64_t planned_step(const ggm::StepPlan& plan, const ggm::StepPlan::Addresses& addresses, uint64_t seed, int64_t step,
                     int threads) {
  const ggm::GlauberArgs args = plan.args_at(addresses, seed, step);
  const py::gil_scoped_release released;
  if (!plan.apart(addresses) || !ggm::cpu::glauber_check(args)) return -1;
  return ggm::cpu::glauber_step(args, plan.tile_at(addresses), threads);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (int index = 0; index < ggm::cpu::isa_count(); ++index) names.emplace_back(ggm::cpu::isa_name(index));
  return names;
}

#endif

#if defined(GGM_WITH_CUDA)
ggm::RaceWork race_work(uintptr_t groups, uintptr_t states, bool is_first, bool is_last) {
  return {pointer<ggm::GroupRecord>(groups), pointer<ggm::RowState>(states), is_first, is_last};
}

void check_cuda(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}
#endif

}  // namespace

PYBIND11_MODULE(GGM_MODULE, module) {
  bind_struct<ggm::CorruptArgs>(module, "CorruptArgs", &corrupt_args);
  bind_struct<ggm::CommitArgs>(module, "CommitArgs", &commit_args);
  bind_struct<ggm::SigmoidBceArgs>(module, "SigmoidBceArgs", &sigmoid_bce_args);
  bind_struct<ggm::SigmoidBceGradients>(module, "SigmoidBceGradients", &sigmoid_bce_gradients);
  bind_struct<ggm::CrossEntropyTile>(module, "CrossEntropyTile", &cross_entropy_tile);
  bind_struct<ggm::CrossEntropySums>(module, "CrossEntropySums", &cross_entropy_sums);
  bind_struct<ggm::CrossEntropyScales>(module, "CrossEntropyScales", &cross_entropy_scales);
  bind_struct<ggm::SharedTile>(module, "SharedTile", &shared_tile);
  bind_struct<ggm::SharedGradientTile>(module, "SharedGradientTile", &shared_gradient_tile);
  bind_row_options(module);
  module.attr("RACE_GROUP") = ggm::kRaceGroup;
  bind_struct<ggm::GlauberArgs>(module, "GlauberArgs", &glauber_args);
  bind_struct<ggm::LogitsTile>(module, "LogitsTile", &logits_tile);
  bind_struct<ggm::Factors>(module, "Factors", &factors);

#if defined(GGM_ON_HOST)
  emulated::bind(module);
#else
  py::class_<RowStates>(module, "RowStates").def(py::init<int64_t>());
  module.def("isas", &isas, "Instruction sets that this build and this processor share, best first.");
  module.def("isa", [] { return ggm::cpu::isa(); }, "The instruction set in use.");
  module.def("select_isa", &ggm::cpu::select_isa, "Use another of isas(); False if it is not one.");
  module.def("counter", &counter, "Philox counter of logical coordinates.");

  py::class_<ggm::StepPlan>(module, "StepPlan")
      .def(py::init([](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile,
                       const std::array<int64_t, ggm::StepPlan::kFields>& spans) {
        return ggm::StepPlan{args, tile, spans};
      }));
  module.def("cpu_planned_step", &planned_step, "Rows without a law; -1 where a value or an address is amiss.");

  const auto release = py::call_guard<py::gil_scoped_release>();
  module.def("cpu_corrupt", &ggm::cpu::corrupt, release);
  module.def("cpu_commit", &ggm::cpu::commit, release);
  module.def(
      "cpu_alias_table",
      [](uintptr_t scaled, uintptr_t table, uintptr_t stacks, int64_t vocab_size) {
        ggm::cpu::alias_table(pointer<double>(scaled), pointer<ggm::AliasRow>(table), pointer<uint32_t>(stacks),
                              vocab_size);
      },
      release);
  module.def(
      "cpu_sigmoid_bce",
      [](const ggm::SigmoidBceArgs& args, uintptr_t loss, uintptr_t candidate_logits, int threads) {
        return ggm::cpu::sigmoid_bce(args, pointer<float>(loss), pointer<float>(candidate_logits), threads);
      },
      release);
  module.def("cpu_sigmoid_bce_backward", &ggm::cpu::sigmoid_bce_backward, release);
  module.def("cpu_linear_cross_entropy", &ggm::cpu::linear_cross_entropy, release);
  module.def("cpu_linear_cross_entropy_backward", &ggm::cpu::linear_cross_entropy_backward, release);
  module.def("cpu_run_tasks", &run_tasks);
  module.def(
      "cpu_shared_sigmoid_bce",
      [](const ggm::SharedTile& tile, uintptr_t sums, int threads) {
        ggm::cpu::shared_sigmoid_bce(tile, pointer<double>(sums), threads);
      },
      release);
  module.def(
      "cpu_shared_sigmoid_bce_backward",
      [](const ggm::SharedTile& tile, uintptr_t row_gradient, const ggm::SharedGradientTile& out, int threads) {
        ggm::cpu::shared_sigmoid_bce_backward(tile, pointer<const float>(row_gradient), out, threads);
      },
      release);
  module.def("cpu_glauber_check", &ggm::cpu::glauber_check, release);
  module.def("cpu_glauber_step", &ggm::cpu::glauber_step, release);
  module.def(
      "cpu_glauber_race",
      [](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile, RowStates& states, int threads) {
        ggm::cpu::glauber_race(args, tile, states.of_row.data(), threads);
      },
      release);
  module.def(
      "cpu_glauber_settle",
      [](const ggm::GlauberArgs& args, uintptr_t row_ids, const RowStates& states) {
        return ggm::cpu::glauber_settle(args, pointer<const int64_t>(row_ids), states.of_row.data(),
                                        static_cast<int64_t>(states.of_row.size()));
      },
      release);
  module.def(
      "cpu_glauber_undecided",
      [](const ggm::GlauberArgs& args, const ggm::Factors& factors, uintptr_t row_ids, int threads) {
        return ggm::cpu::glauber_undecided(args, factors, pointer<int64_t>(row_ids), threads);
      },
      release);
  module.def(
      "cpu_philox",
      [](uintptr_t counters, uintptr_t words, int64_t count, uint64_t seed) {
        ggm::cpu::philox({pointer<const uint32_t>(counters), pointer<uint32_t>(words), count, seed});
      },
      release);
#endif

#if defined(GGM_WITH_CUDA)
  module.def("cuda_corrupt", [](const ggm::CorruptArgs& args, uintptr_t stream, int device) {
    check_cuda(ggm::cuda::corrupt(args, pointer<void>(stream), device));
  });
  module.def("cuda_commit", [](const ggm::CommitArgs& args, uintptr_t stream, int device) {
    check_cuda(ggm::cuda::commit(args, pointer<void>(stream), device));
  });
  module.def("cuda_sigmoid_bce", [](const ggm::SigmoidBceArgs& args, uintptr_t loss, uintptr_t candidate_logits,
                                    uintptr_t stream, int device) {
    check_cuda(ggm::cuda::sigmoid_bce(args, pointer<float>(loss), pointer<float>(candidate_logits),
                                      pointer<void>(stream), device));
  });
  module.def("cuda_sigmoid_bce_backward",
             [](const ggm::SigmoidBceArgs& args, const ggm::SigmoidBceGradients& gradients, uintptr_t tokens,
                uintptr_t order, uintptr_t stream, int device) {
               check_cuda(ggm::cuda::sigmoid_bce_backward(args, gradients, pointer<const int64_t>(tokens),
                                                          pointer<const int64_t>(order), pointer<void>(stream),
                                                          device));
             });
  module.def("cuda_linear_cross_entropy", [](const ggm::CrossEntropyTile& tile, const ggm::CrossEntropySums& sums,
                                             uintptr_t stream, int device) {
    check_cuda(ggm::cuda::linear_cross_entropy(tile, sums, pointer<void>(stream), device));
  });
  module.def("cuda_linear_cross_entropy_backward", [](const ggm::CrossEntropyTile& tile,
                                                      const ggm::CrossEntropyScales& scales, uintptr_t stream,
                                                      int device) {
    check_cuda(ggm::cuda::linear_cross_entropy_backward(tile, scales, pointer<void>(stream), device));
  });
  module.def("cuda_shared_sigmoid_bce", [](const ggm::SharedTile& tile, uintptr_t sums, uintptr_t stream, int device) {
    check_cuda(ggm::cuda::shared_sigmoid_bce(tile, pointer<double>(sums), pointer<void>(stream), device));
  });
  module.def("cuda_shared_sigmoid_bce_backward",
             [](const ggm::SharedTile& tile, uintptr_t row_gradient, const ggm::SharedGradientTile& out,
                uintptr_t stream, int device) {
               check_cuda(ggm::cuda::shared_sigmoid_bce_backward(tile, pointer<const float>(row_gradient), out,
                                                                 pointer<void>(stream), device));
             });
  bind_struct<ggm::RaceWork>(module, "RaceWork", &race_work);
  module.attr("GROUP_RECORD_BYTES") = sizeof(ggm::GroupRecord);
  module.attr("ROW_STATE_BYTES") = sizeof(ggm::RowState);
  module.def("cuda_glauber_threshold", [](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile,
                                          uintptr_t thresholds, uintptr_t stream, int device) {
    check_cuda(ggm::cuda::glauber_threshold(args, tile, pointer<float>(thresholds), pointer<void>(stream), device));
  });
  module.def("cuda_glauber_race", [](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile,
                                     const ggm::RaceWork& work, uintptr_t thresholds, uintptr_t stream, int device) {
    check_cuda(ggm::cuda::glauber_race(args, tile, work, pointer<const float>(thresholds), pointer<void>(stream),
                                       device));
  });
  module.def("cuda_philox", [](uintptr_t counters, uintptr_t words, int64_t count, uint64_t seed, uintptr_t stream,
                               int device) {
    check_cuda(ggm::cuda::philox({pointer<const uint32_t>(counters), pointer<uint32_t>(words), count, seed},
                                 pointer<void>(stream), device));
  });
#endif
}
