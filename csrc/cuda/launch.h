// What every launch needs: the right device for its duration, a grid that fills it, the error in words. And the one
// place that starts kernels, on a GPU or, where GGM_ON_HOST is defined, on the CPU (csrc/emulated).
#pragma once

#if defined(GGM_ON_HOST)
#include "emulated/device.h"
#else
#include <cuda_runtime.h>
#endif

#include <algorithm>
#include <cstdint>

namespace ggm::cuda {

constexpr int kThreads = 256;

// Makes `device` current and restores what was: this core's CUDA runtime is its own, the driver's
// current context is shared with PyTorch.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

struct Launch {
  unsigned grid;
  int threads;
  cudaStream_t queue;
};

// Every kernel loops over its items with the grid as its stride, so that any grid does.
template <auto kKernel, class... Arguments>
void start(const Launch& launch, const Arguments&... arguments) {
#if defined(GGM_ON_HOST)
  emulated::run<kKernel>(launch.grid, launch.threads, __PRETTY_FUNCTION__, arguments...);
#else
  kKernel<<<launch.grid, launch.threads, 0, launch.queue>>>(arguments...);
#endif
}

inline int processor_count(int device) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return processors;
}

// Blocks for a grid-stride loop over `items`: all of them, or eight full waves of the device.
inline unsigned grid_for(int64_t items, int device) {
  const int64_t wanted = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, int64_t{processor_count(device)} * 8 * 8));
}

}  // namespace ggm::cuda
