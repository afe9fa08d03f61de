// Memory for floats, on a boundary of cache lines. Internal to each instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace ggm::cpu::GGM_ISA {
namespace {

class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t size) {
    const size_t lines = (sizeof(float) * static_cast<size_t>(size) + kLine - 1) / kLine;
    data_ = static_cast<float*>(std::aligned_alloc(kLine, lines * kLine));
  }
  ~AlignedFloats() { std::free(data_); }
  AlignedFloats(const AlignedFloats&) = delete;
  AlignedFloats& operator=(const AlignedFloats&) = delete;

  __attribute__((always_inline)) float* data() const { return data_; }

 private:
  static constexpr size_t kLine = 64;
  float* data_;
};

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
