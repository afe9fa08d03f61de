// Which sectors of memory a launch touches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>

namespace emulated {

class Sectors {
 public:
  static constexpr uintptr_t kBytes = 32;  // that a GPU moves at least

  void note(const void* at, size_t bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
    for (uintptr_t sector = begin / kBytes; sector <= (begin + bytes - 1) / kBytes; ++sector) {
      if (sector != last_) seen_.insert(sector);
      last_ = sector;
    }
  }
  // How many there were since the last call.
  uint64_t take() {
    const uint64_t count = seen_.size();
    seen_.clear();
    last_ = 0;
    return count;
  }

 private:
  std::unordered_set<uintptr_t> seen_;
  uintptr_t last_ = 0;
};

// Whether an address is in the library or program that device code was linked into.
bool is_of_module(const void* at);

}  // namespace emulated
