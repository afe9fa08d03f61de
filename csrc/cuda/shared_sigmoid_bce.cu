// Between the products of a tile of logits: a warp a row for the loss, its lanes side by side along the candidates; for
// the gradient a thread an element, side by side likewise.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/half.h"
#include "numerics/sigmoid_bce.h"

namespace ggm::cuda {
namespace {

constexpr int kWarp = 32;

__device__ __forceinline__ float logit_at(const SharedTile& tile, int64_t row, int64_t column) {
  float f = tile.logits[row * tile.row_stride + column];
  if (tile.bias != nullptr) f += tile.bias[column];
  if (tile.offset != nullptr) f += tile.offset[row];
  return f;
}

// Losses add up in double: there may be as many candidates as tokens.
__global__ void __launch_bounds__(kThreads) shared_loss_kernel(SharedTile tile, double* sums) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x / kWarp;
  for (int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp; row < tile.rows; row += stride) {
    double total = 0.0;
    for (int64_t column = lane; column < tile.columns; column += kWarp) {
      total += candidate_loss(logit_at(tile, row, column), 0.0f, tile.weight[column]);
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, distance);
    if (lane == 0) sums[row] += total;
  }
}

// `out` may be the logits: each is read by the thread that writes its gradient.
template <class T>
__global__ void __launch_bounds__(kThreads) shared_gradient_kernel(SharedTile tile, const float* row_gradient,
                                                                   SharedGradientTile out) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x, size = tile.rows * tile.columns;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < size; at += stride) {
    const int64_t row = at / tile.columns, column = at % tile.columns;
    const float slope = candidate_loss_derivative(logit_at(tile, row, column), 0.0f, tile.weight[column]);
    round_to(row_gradient[row] * slope, static_cast<T*>(out.gradient)[row * out.row_stride + column]);
  }
}

}  // namespace

const char* shared_sigmoid_bce(const SharedTile& tile, double* sums, void* stream, int device) {
  if (tile.rows == 0 || tile.columns == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  start<shared_loss_kernel>({grid_for(tile.rows * kWarp, device), kThreads, queue}, tile, sums);
  return message(cudaGetLastError());
}

const char* shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient,
                                        const SharedGradientTile& out, void* stream, int device) {
  if (tile.rows == 0 || tile.columns == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const Launch launch = {grid_for(tile.rows * tile.columns, device), kThreads, static_cast<cudaStream_t>(stream)};
  switch (out.dtype) {
    case Float::bfloat16:
      start<shared_gradient_kernel<BFloat16>>(launch, tile, row_gradient, out);
      break;
    case Float::float16:
      start<shared_gradient_kernel<Float16>>(launch, tile, row_gradient, out);
      break;
    default:
      start<shared_gradient_kernel<float>>(launch, tile, row_gradient, out);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
