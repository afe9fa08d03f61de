#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/philox.h"

namespace ggm::cuda {
namespace {

__global__ void philox_kernel(PhiloxArgs args) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < args.count; i += stride) {
    const uint32_t* c = args.counters + 4 * i;
    const PhiloxBlock<uint32_t> block = philox4x32(c[0], c[1], c[2], c[3], philox_keys(args.seed));
    uint32_t* out = args.words + 4 * i;
    out[0] = block.w0;
    out[1] = block.w1;
    out[2] = block.w2;
    out[3] = block.w3;
  }
}

}  // namespace

const char* philox(const PhiloxArgs& args, void* stream, int device) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  start<philox_kernel>({grid_for(args.count, device), kThreads, static_cast<cudaStream_t>(stream)}, args);
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
