// The shared variables of all kernels: one section of the library, since one block runs at a time.
#pragma once

namespace emulated {

// Fills them with what no kernel may rely on.
void spoil_shared_memory();

}  // namespace emulated
