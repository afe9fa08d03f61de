// Settings and counts of the emulator, for tests.
#pragma once

#include <pybind11/pybind11.h>

namespace emulated {

void bind(pybind11::module_& module);

}  // namespace emulated
