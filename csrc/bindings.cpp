// Python's way into the core: integers that are addresses, sizes, a thread count or a stream handle. Integers are
// given by name: one in the place of another would be a wild pointer.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"
#include "numerics/counter.h"
#include "plans.h"

// Compiled twice: as _native, and with GGM_ON_HOST as _emulated, whose csrc/cuda runs on the CPU.
#if defined(GGM_ON_HOST)
#include "emulated/bindings.h"
#define GGM_WITH_CUDA
#define GGM_MODULE _emulated
#else
#define GGM_MODULE _native
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// What Python gives for a field: an address for a pointer, a number, or of a small struct a tuple in its order.
template <class T>
struct From {
  static T python(py::handle given) { return given.cast<T>(); }
};

template <class T>
struct From<T*> {
  static T* python(py::handle given) { return pointer<T>(given.cast<uintptr_t>()); }
};

template <>
struct From<ggm::Float> {
  static ggm::Float python(py::handle given) { return static_cast<ggm::Float>(given.cast<int>()); }
};

template <class T>
struct From<ggm::RowValues<T>> {
  static ggm::RowValues<T> python(py::handle given) {
    const auto [values, sequence_stride, stride] = given.cast<std::tuple<uintptr_t, int64_t, int64_t>>();
    return {pointer<const T>(values), sequence_stride, stride};
  }
};

template <class T>
struct From<ggm::Matrix<T>> {
  static ggm::Matrix<T> python(py::handle given) {
    const auto [data, row_stride, stride] = given.cast<std::tuple<uintptr_t, int64_t, int64_t>>();
    return {pointer<T>(data), row_stride, stride};
  }
};

template <class T>
struct From<ggm::PerRow<T>> {
  static ggm::PerRow<T> python(py::handle given) {
    const auto [value, values, stride] = given.cast<std::tuple<T, uintptr_t, int64_t>>();
    return {value, pointer<const T>(values), stride};
  }
};

template <>
struct From<ggm::NoiseSource> {
  static ggm::NoiseSource python(py::handle given) {
    const auto [table, mask_id, vocab_size] = given.cast<std::tuple<uintptr_t, int64_t, int64_t>>();
    return {pointer<const ggm::AliasRow>(table), mask_id, vocab_size};
  }
};

template <class Struct>
struct Field {
  py::str name;
  std::function<void(Struct&, py::handle)> set;
};

template <class Struct, class T>
Field<Struct> field(const char* name, T Struct::*member) {
  return {py::str(name), [member](Struct& of, py::handle given) { of.*member = From<T>::python(given); }};
}

// A field by the one name that it has on both sides: no order that could be mixed up.
#define GGM_FIELD(name) field(#name, &Struct::name)

[[noreturn]] void refuse(const std::string& name, const std::string& what) { throw py::type_error(name + ": " + what); }

// A class that Python makes by naming every field, and that the other module, which has one of the same name, does not
// share. `finish` works out the fields that Python does not give.
template <class Struct>
void bind_struct(py::module_& module, const char* name, std::vector<Field<Struct>> fields,
                 void (*finish)(Struct&) = nullptr) {
  const auto make = [name = std::string(name), fields = std::move(fields), finish](const py::kwargs& given) {
    Struct made = {};
    for (const Field<Struct>& field : fields) {
      PyObject* const value = PyDict_GetItem(given.ptr(), field.name.ptr());
      if (value == nullptr) refuse(name, "no " + std::string(field.name));
      try {
        field.set(made, value);
      } catch (const py::cast_error&) {
        refuse(name, std::string(field.name) + " got " + std::string(py::repr(value)));
      }
    }
    if (given.size() != fields.size()) refuse(name, "fields that it does not have");
    if (finish != nullptr) finish(made);
    return made;
  };
  py::class_<Struct>(module, name, py::module_local()).def(py::init(make));
}

template <class T>
void def_field(py::class_<ggm::RowOptions>& options, const char* name, T ggm::RowOptions::*member) {
  options.def_property(name, nullptr,
                       [member](ggm::RowOptions& of, py::handle given) { of.*member = From<T>::python(given); });
}

ggm::RowOptions row_options() {
  ggm::RowOptions options = {};
  options.noise_mask = -1;
  return options;
}

void bind_row_options(py::module_& module) {
  using Options = ggm::RowOptions;
  py::class_<Options> options(module, "RowOptions", py::module_local());
  options.def(py::init(&row_options));
  def_field(options, "softcap", &Options::softcap);
  def_field(options, "top_p_first", &Options::top_p_first);
  def_field(options, "noise_mask", &Options::noise_mask);
  def_field(options, "token_bound", &Options::token_bound);
  def_field(options, "seed", &Options::seed);
  def_field(options, "step", &Options::step);
  def_field(options, "temperature", &Options::temperature);
  def_field(options, "top_k", &Options::top_k);
  def_field(options, "top_p", &Options::top_p);
  def_field(options, "min_p", &Options::min_p);
  def_field(options, "logit_shift", &Options::logit_shift);
  def_field(options, "mixture", &Options::mixture);
  def_field(options, "noise_table", &Options::noise_table);
  def_field(options, "raw_log_prob", &Options::raw_log_prob);
  def_field(options, "entropy", &Options::entropy);
  def_field(options, "margin", &Options::margin);
  def_field(options, "argmax", &Options::argmax);
}

void bind_corrupt_args(py::module_& module) {
  using Struct = ggm::CorruptArgs;
  bind_struct<Struct>(module, "CorruptArgs", {
    GGM_FIELD(tokens), GGM_FIELD(token_bytes), GGM_FIELD(keep_prob), GGM_FIELD(keep_per_position),
    GGM_FIELD(keep_row_stride), GGM_FIELD(frozen), GGM_FIELD(sample_ids), GGM_FIELD(noise), GGM_FIELD(noisy),
    GGM_FIELD(is_signal), GGM_FIELD(batch), GGM_FIELD(length), GGM_FIELD(token_bound), GGM_FIELD(seed),
    GGM_FIELD(step), GGM_FIELD(step_pointer), GGM_FIELD(stream)
  });
}

void bind_commit_args(py::module_& module) {
  using Struct = ggm::CommitArgs;
  bind_struct<Struct>(module, "CommitArgs", {
    GGM_FIELD(tokens), GGM_FIELD(token_bytes), GGM_FIELD(proposal), GGM_FIELD(proposal_bytes), GGM_FIELD(score),
    GGM_FIELD(dtype), GGM_FIELD(eligible), GGM_FIELD(accepted), GGM_FIELD(count), GGM_FIELD(threshold),
    GGM_FIELD(budget), GGM_FIELD(has_budget), GGM_FIELD(noises_rest), GGM_FIELD(noise), GGM_FIELD(sample_ids),
    GGM_FIELD(batch), GGM_FIELD(length), GGM_FIELD(seed), GGM_FIELD(step), GGM_FIELD(step_pointer)
  });
}

void bind_sigmoid_bce_args(py::module_& module) {
  using Struct = ggm::SigmoidBceArgs;
  bind_struct<Struct>(module, "SigmoidBceArgs", {
    GGM_FIELD(dtype), GGM_FIELD(linear), GGM_FIELD(hidden), GGM_FIELD(hidden_stride), GGM_FIELD(weight),
    GGM_FIELD(weight_stride), GGM_FIELD(bias), GGM_FIELD(offset), GGM_FIELD(candidates),
    GGM_FIELD(candidate_bytes), GGM_FIELD(signal_weight), GGM_FIELD(signal_row_stride), GGM_FIELD(signal_stride),
    GGM_FIELD(noise_weight), GGM_FIELD(noise_row_stride), GGM_FIELD(noise_stride), GGM_FIELD(rows),
    GGM_FIELD(count), GGM_FIELD(vocab_size), GGM_FIELD(hidden_size)
  });
}

void bind_sigmoid_bce_gradients(py::module_& module) {
  using Struct = ggm::SigmoidBceGradients;
  bind_struct<Struct>(module, "SigmoidBceGradients", {
    GGM_FIELD(loss), GGM_FIELD(candidate_logits), GGM_FIELD(hidden), GGM_FIELD(weight), GGM_FIELD(bias),
    GGM_FIELD(logits), GGM_FIELD(shared_hidden), GGM_FIELD(shared_weight), GGM_FIELD(shared_bias),
    GGM_FIELD(places)
  });
}

void bind_shared_tile(py::module_& module) {
  using Struct = ggm::SharedTile;
  bind_struct<Struct>(module, "SharedTile", {
    GGM_FIELD(logits), GGM_FIELD(row_stride), GGM_FIELD(bias), GGM_FIELD(offset), GGM_FIELD(weight),
    GGM_FIELD(rows), GGM_FIELD(columns)
  });
}

void bind_shared_gradient_tile(py::module_& module) {
  using Struct = ggm::SharedGradientTile;
  bind_struct<Struct>(module, "SharedGradientTile", {
    GGM_FIELD(dtype), GGM_FIELD(gradient), GGM_FIELD(row_stride)
  });
}

void bind_cross_entropy_tile(py::module_& module) {
  using Struct = ggm::CrossEntropyTile;
  bind_struct<Struct>(module, "CrossEntropyTile", {
    GGM_FIELD(products), GGM_FIELD(dtype), GGM_FIELD(row_stride), GGM_FIELD(rows), GGM_FIELD(token_begin),
    GGM_FIELD(tokens), GGM_FIELD(bias), GGM_FIELD(softcap), GGM_FIELD(targets), GGM_FIELD(logit_shift),
    GGM_FIELD(shifted_token)
  });
}

void bind_cross_entropy_sums(py::module_& module) {
  using Struct = ggm::CrossEntropySums;
  bind_struct<Struct>(module, "CrossEntropySums", {
    GGM_FIELD(top), GGM_FIELD(mass), GGM_FIELD(target_logit)
  });
}

void bind_cross_entropy_scales(py::module_& module) {
  using Struct = ggm::CrossEntropyScales;
  bind_struct<Struct>(module, "CrossEntropyScales", {
    GGM_FIELD(top), GGM_FIELD(log_mass), GGM_FIELD(softmax_scale), GGM_FIELD(target_scale),
    GGM_FIELD(negligible), GGM_FIELD(bias)
  });
}

void bind_glauber_args(py::module_& module) {
  using Struct = ggm::GlauberArgs;
  bind_struct<Struct>(module, "GlauberArgs", {
    GGM_FIELD(tokens), GGM_FIELD(token_bytes), GGM_FIELD(token_row_stride), GGM_FIELD(token_stride),
    GGM_FIELD(positions), GGM_FIELD(position_row_stride), GGM_FIELD(sample_ids), GGM_FIELD(frozen),
    GGM_FIELD(noise_rate), GGM_FIELD(noise_row_stride), GGM_FIELD(noise_stride), GGM_FIELD(noise_log_probs),
    GGM_FIELD(normalize), GGM_FIELD(batch), GGM_FIELD(length), GGM_FIELD(count), GGM_FIELD(vocab_size),
    GGM_FIELD(seed), GGM_FIELD(step), GGM_FIELD(step_pointer), GGM_FIELD(temperature), GGM_FIELD(top_k),
    GGM_FIELD(top_p), GGM_FIELD(log_min_p), GGM_FIELD(log_sum_exp), GGM_FIELD(log_prob), GGM_FIELD(keep_prob),
    GGM_FIELD(options)
  }, [](Struct& args) {
    args.inverse_temperature = ggm::inverse_of(args.temperature);
    args.greedy = args.temperature <= 0.0f;
  });
}

void bind_logits_tile(py::module_& module) {
  using Struct = ggm::LogitsTile;
  bind_struct<Struct>(module, "LogitsTile", {
    GGM_FIELD(logits), GGM_FIELD(dtype), GGM_FIELD(group), GGM_FIELD(group_stride), GGM_FIELD(row_stride),
    GGM_FIELD(row_begin), GGM_FIELD(row_ids), GGM_FIELD(rows), GGM_FIELD(token_begin), GGM_FIELD(tokens),
    GGM_FIELD(bias)
  });
}

void bind_factors(py::module_& module) {
  using Struct = ggm::Factors;
  bind_struct<Struct>(module, "Factors", {
    GGM_FIELD(dtype), GGM_FIELD(hidden), GGM_FIELD(hidden_stride), GGM_FIELD(weight), GGM_FIELD(weight_stride),
    GGM_FIELD(bias), GGM_FIELD(hidden_size)
  });
}

#if !defined(GGM_ON_HOST)
void bind_skinny_product(py::module_& module) {
  using Struct = ggm::SkinnyProduct;
  bind_struct<Struct>(module, "SkinnyProduct", {
    GGM_FIELD(factors), GGM_FIELD(logits), GGM_FIELD(logits_stride), GGM_FIELD(rows), GGM_FIELD(tokens)
  });
}

void bind_weighted_sums(py::module_& module) {
  using Struct = ggm::WeightedSums;
  bind_struct<Struct>(module, "WeightedSums", {
    GGM_FIELD(weights), GGM_FIELD(weight_stride), GGM_FIELD(rows), GGM_FIELD(row_stride), GGM_FIELD(totals),
    GGM_FIELD(total_stride), GGM_FIELD(count), GGM_FIELD(terms), GGM_FIELD(columns)
  });
}

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

// A plan of calls, the names of their tensors in the order in which it counts them, and what runs it.
template <class Plan, class... Args>
void bind_plan(py::module_& module, const char* name, const char* run) {
  py::class_<Plan> plan(module, name, py::module_local());
  using Where = typename Plan::Where;
  plan.def(py::init([](const Args&... args, const typename Where::Bytes& bytes, const typename Where::Addresses& held,
                       const std::vector<int>& moving) { return Plan{args..., {bytes, held, moving}}; }));
  plan.attr("names") = py::tuple(py::cast(Plan::names()));
  module.def(run, &ggm::run_planned<Plan>, py::call_guard<py::gil_scoped_release>());
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (int index = 0; index < ggm::cpu::isa_count(); ++index) names.emplace_back(ggm::cpu::isa_name(index));
  return names;
}

#endif

#if defined(GGM_WITH_CUDA)
void bind_race_work(py::module_& module) {
  using Struct = ggm::RaceWork;
  bind_struct<Struct>(module, "RaceWork", {
    GGM_FIELD(groups), GGM_FIELD(states), GGM_FIELD(is_first), GGM_FIELD(is_last)
  });
}

void check_cuda(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}
#endif

}  // namespace

PYBIND11_MODULE(GGM_MODULE, module) {
  bind_corrupt_args(module);
  bind_commit_args(module);
  bind_sigmoid_bce_args(module);
  bind_sigmoid_bce_gradients(module);
  bind_cross_entropy_tile(module);
  bind_cross_entropy_sums(module);
  bind_cross_entropy_scales(module);
  bind_shared_tile(module);
  bind_shared_gradient_tile(module);
  bind_row_options(module);
  bind_glauber_args(module);
  bind_logits_tile(module);
  bind_factors(module);
  module.attr("RACE_GROUP") = ggm::kRaceGroup;

#if defined(GGM_ON_HOST)
  emulated::bind(module);
#else
  bind_skinny_product(module);
  bind_weighted_sums(module);
  py::class_<RowStates>(module, "RowStates").def(py::init<int64_t>());
  module.def("isas", &isas, "Instruction sets that this build and this processor share, best first.");
  module.def("isa", [] { return ggm::cpu::isa(); }, "The instruction set in use.");
  module.def("select_isa", &ggm::cpu::select_isa, "Use another of isas(); False if it is not one.");
  module.def("counter", &counter, "Philox counter of logical coordinates.");

  bind_plan<ggm::StepPlan, ggm::GlauberArgs, ggm::LogitsTile>(module, "StepPlan", "planned_step");
  bind_plan<ggm::CommitPlan, ggm::CommitArgs>(module, "CommitPlan", "planned_commit");
  bind_plan<ggm::CorruptPlan, ggm::CorruptArgs>(module, "CorruptPlan", "planned_corrupt");

  const auto release = py::call_guard<py::gil_scoped_release>();
  module.def("cpu_corrupt", &ggm::cpu::corrupt, release);
  module.def("cpu_commit", &ggm::cpu::commit, release);
  module.def(
      "cpu_alias_table",
      [](uintptr_t scaled, uintptr_t table, uintptr_t stacks, int64_t vocab_size) {
        ggm::cpu::alias_table(pointer<double>(scaled), pointer<ggm::AliasRow>(table), pointer<uint32_t>(stacks),
                              vocab_size);
      },
      py::kw_only(), "scaled"_a, "table"_a, "stacks"_a, "vocab_size"_a, release);
  module.def(
      "cpu_sigmoid_bce",
      [](const ggm::SigmoidBceArgs& args, uintptr_t loss, uintptr_t candidate_logits, int threads) {
        return ggm::cpu::sigmoid_bce(args, pointer<float>(loss), pointer<float>(candidate_logits), threads);
      },
      "args"_a, py::kw_only(), "loss"_a, "candidate_logits"_a, "threads"_a, release);
  module.def("cpu_sigmoid_bce_backward", &ggm::cpu::sigmoid_bce_backward, release);
  module.def("cpu_linear_cross_entropy", &ggm::cpu::linear_cross_entropy, release);
  module.def("cpu_linear_cross_entropy_backward", &ggm::cpu::linear_cross_entropy_backward, release);
  module.def("cpu_run_tasks", &run_tasks);
  module.def(
      "cpu_shared_sigmoid_bce",
      [](const ggm::SharedTile& tile, uintptr_t sums, int threads) {
        ggm::cpu::shared_sigmoid_bce(tile, pointer<double>(sums), threads);
      },
      "tile"_a, py::kw_only(), "sums"_a, "threads"_a, release);
  module.def(
      "cpu_shared_sigmoid_bce_backward",
      [](const ggm::SharedTile& tile, uintptr_t row_gradient, const ggm::SharedGradientTile& out, int threads) {
        ggm::cpu::shared_sigmoid_bce_backward(tile, pointer<const float>(row_gradient), out, threads);
      },
      "tile"_a, "row_gradient"_a, "out"_a, py::kw_only(), "threads"_a, release);
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
  module.def("cpu_skinny_product", &ggm::cpu::skinny_product, release);
  module.def("cpu_add_weighted_sums", &ggm::cpu::add_weighted_sums, release);
  module.def(
      "cpu_philox",
      [](uintptr_t counters, uintptr_t words, int64_t count, uint64_t seed) {
        ggm::cpu::philox({pointer<const uint32_t>(counters), pointer<uint32_t>(words), count, seed});
      },
      py::kw_only(), "counters"_a, "words"_a, "count"_a, "seed"_a, release);
#endif

#if defined(GGM_WITH_CUDA)
  const auto stream = "stream"_a;
  const auto device = "device"_a;
  module.def(
      "cuda_corrupt",
      [](const ggm::CorruptArgs& args, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::corrupt(args, pointer<void>(stream), device));
      },
      "args"_a, py::kw_only(), stream, device);
  module.def(
      "cuda_commit",
      [](const ggm::CommitArgs& args, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::commit(args, pointer<void>(stream), device));
      },
      "args"_a, py::kw_only(), stream, device);
  module.def(
      "cuda_sigmoid_bce",
      [](const ggm::SigmoidBceArgs& args, uintptr_t loss, uintptr_t candidate_logits, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::sigmoid_bce(args, pointer<float>(loss), pointer<float>(candidate_logits),
                                          pointer<void>(stream), device));
      },
      "args"_a, py::kw_only(), "loss"_a, "candidate_logits"_a, stream, device);
  module.def(
      "cuda_sigmoid_bce_backward",
      [](const ggm::SigmoidBceArgs& args, const ggm::SigmoidBceGradients& gradients, uintptr_t tokens, uintptr_t order,
         uintptr_t stream, int device) {
        check_cuda(ggm::cuda::sigmoid_bce_backward(args, gradients, pointer<const int64_t>(tokens),
                                                   pointer<const int64_t>(order), pointer<void>(stream), device));
      },
      "args"_a, "gradients"_a, py::kw_only(), "tokens"_a, "order"_a, stream, device);
  module.def(
      "cuda_linear_cross_entropy",
      [](const ggm::CrossEntropyTile& tile, const ggm::CrossEntropySums& sums, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::linear_cross_entropy(tile, sums, pointer<void>(stream), device));
      },
      "tile"_a, "sums"_a, py::kw_only(), stream, device);
  module.def(
      "cuda_linear_cross_entropy_backward",
      [](const ggm::CrossEntropyTile& tile, const ggm::CrossEntropyScales& scales, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::linear_cross_entropy_backward(tile, scales, pointer<void>(stream), device));
      },
      "tile"_a, "scales"_a, py::kw_only(), stream, device);
  module.def(
      "cuda_shared_sigmoid_bce",
      [](const ggm::SharedTile& tile, uintptr_t sums, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::shared_sigmoid_bce(tile, pointer<double>(sums), pointer<void>(stream), device));
      },
      "tile"_a, py::kw_only(), "sums"_a, stream, device);
  module.def(
      "cuda_shared_sigmoid_bce_backward",
      [](const ggm::SharedTile& tile, uintptr_t row_gradient, const ggm::SharedGradientTile& out, uintptr_t stream,
         int device) {
        check_cuda(ggm::cuda::shared_sigmoid_bce_backward(tile, pointer<const float>(row_gradient), out,
                                                          pointer<void>(stream), device));
      },
      "tile"_a, "row_gradient"_a, "out"_a, py::kw_only(), stream, device);
  bind_race_work(module);
  module.attr("GROUP_RECORD_BYTES") = sizeof(ggm::GroupRecord);
  module.attr("ROW_STATE_BYTES") = sizeof(ggm::RowState);
  module.def(
      "cuda_glauber_threshold",
      [](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile, uintptr_t thresholds, uintptr_t stream,
         int device) {
        check_cuda(
            ggm::cuda::glauber_threshold(args, tile, pointer<float>(thresholds), pointer<void>(stream), device));
      },
      "args"_a, "tile"_a, py::kw_only(), "thresholds"_a, stream, device);
  module.def(
      "cuda_glauber_race",
      [](const ggm::GlauberArgs& args, const ggm::LogitsTile& tile, const ggm::RaceWork& work, uintptr_t thresholds,
         uintptr_t stream, int device) {
        check_cuda(ggm::cuda::glauber_race(args, tile, work, pointer<const float>(thresholds), pointer<void>(stream),
                                           device));
      },
      "args"_a, "tile"_a, "work"_a, py::kw_only(), "thresholds"_a, stream, device);
  module.def(
      "cuda_philox",
      [](uintptr_t counters, uintptr_t words, int64_t count, uint64_t seed, uintptr_t stream, int device) {
        check_cuda(ggm::cuda::philox({pointer<const uint32_t>(counters), pointer<uint32_t>(words), count, seed},
                                     pointer<void>(stream), device));
      },
      py::kw_only(), "counters"_a, "words"_a, "count"_a, "seed"_a, stream, device);
#endif
}
