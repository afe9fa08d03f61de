#include "emulated/bindings.h"

#include "emulated/emulator.h"

namespace py = pybind11;

namespace emulated {
namespace {

py::dict as_dict(const Counts& counts) {
  py::dict of;
  of["launches"] = counts.launches;
  of["blocks"] = counts.blocks;
  of["threads"] = counts.threads;
  of["barriers"] = counts.barriers;
  of["warp_operations"] = counts.warp_operations;
  of["atomics"] = counts.atomics;
  of["logarithms"] = counts.logarithms;
  of["exponentials"] = counts.exponentials;
  of["votes"] = counts.votes;
  of["votes_won"] = counts.votes_won;
  of["bytes_read"] = counts.bytes_read;
  of["bytes_written"] = counts.bytes_written;
  of["sectors_read"] = counts.sectors_read;
  of["sectors_written"] = counts.sectors_written;
  return of;
}

}  // namespace

void bind(py::module_& module) {
  py::class_<Settings>(module, "Settings", py::module_local())
      .def_readwrite("order", &Settings::order)
      .def_readwrite("largest_grid", &Settings::largest_grid)
      .def_readwrite("processors", &Settings::processors);
  module.attr("settings") = py::cast(&settings(), py::return_value_policy::reference);
  module.def(
      "take_counts",
      [] {
        py::dict of_kernels;
        for (const auto& [kernel, counts] : counts()) of_kernels[py::str(kernel)] = as_dict(counts);
        counts().clear();
        return of_kernels;
      },
      "Counts of every kernel by its name, since the last call.");
}

}  // namespace emulated
