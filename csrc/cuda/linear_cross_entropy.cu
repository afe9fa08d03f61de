// Between the products of tiles: a block a row, its threads side by side along the tokens. A row's sums are merged in
// the order of threads, so they do not depend on timing. The gradient of the bias: a thread a token, row after row.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/cross_entropy.h"
#include "numerics/half.h"

namespace ggm::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ float minus_infinity() { return float_of(0xFF800000u); }

// A row of a tile of products, as logits.
struct Row {
  int64_t target;   // its column; outside the tile it is nobody's
  int64_t shifted;  // likewise
  float shift;
};

__device__ __forceinline__ Row row_of(const CrossEntropyTile& tile, int64_t row) {
  if (tile.logit_shift == nullptr) return {tile.targets[row] - tile.token_begin, -1, 0.0f};
  return {tile.targets[row] - tile.token_begin, tile.shifted_token[row] - tile.token_begin, tile.logit_shift[row]};
}

template <class T>
__device__ __forceinline__ float unshifted(const CrossEntropyTile& tile, const T* products, int64_t column) {
  float logit = to_float(products[column]);
  if (tile.bias != nullptr) logit += tile.bias[column];
  return capped(logit, tile.softcap);
}

// exp(logit - top) summed up so far, and that top.
struct Sum {
  float top, mass;
};

__device__ __forceinline__ void add(Sum& sum, float logit) {
  // A NaN fails the comparison and makes the mass NaN; what is -inf throughout has no mass.
  if (logit > sum.top) {
    sum = {logit, sum.mass * expf(sum.top - logit) + 1.0f};
  } else if (logit != minus_infinity()) {
    sum.mass += expf(logit - sum.top);
  }
}

__device__ __forceinline__ Sum merge(const Sum& a, const Sum& b) {
  const float top = fmaxf(a.top, b.top);
  if (top == minus_infinity()) return {top, a.mass + b.mass};
  return {top, a.mass * expf(a.top - top) + b.mass * expf(b.top - top)};
}

__device__ __forceinline__ Sum merge_lanes(Sum sum) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Sum other = {__shfl_xor_sync(0xFFFFFFFFu, sum.top, distance),
                       __shfl_xor_sync(0xFFFFFFFFu, sum.mass, distance)};
    sum = merge(sum, other);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(CrossEntropyTile tile, CrossEntropySums sums) {
  __shared__ Sum of_warps[kWarps];
  const int lane = threadIdx.x % kWarp;
  for (int64_t index = blockIdx.x; index < tile.rows; index += gridDim.x) {
    const Row row = row_of(tile, index);
    const T* products = static_cast<const T*>(tile.products) + index * tile.row_stride;
    Sum sum = {minus_infinity(), 0.0f};
    for (int64_t column = threadIdx.x; column < tile.tokens; column += kThreads) {
      float logit = unshifted(tile, products, column);
      if (column == row.shifted) logit += row.shift;
      if (column == row.target) sums.target_logit[index] = logit;
      add(sum, logit);
    }
    sum = merge_lanes(sum);
    if (lane == 0) of_warps[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kWarps; ++warp) sum = merge(sum, of_warps[warp]);
      sums.top[index] = sum.top;
      sums.mass[index] = sum.mass;
    }
    __syncthreads();  // before the next row's sums take their place
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradients_kernel(CrossEntropyTile tile, CrossEntropyScales scales) {
  for (int64_t index = blockIdx.x; index < tile.rows; index += gridDim.x) {
    const Row row = row_of(tile, index);
    T* products = static_cast<T*>(tile.products) + index * tile.row_stride;
    const float top = scales.top[index], log_mass = scales.log_mass[index];
    const float softmax_scale = scales.softmax_scale[index], target_scale = scales.target_scale[index];
    const bool counts = softmax_scale != 0.0f || target_scale != 0.0f;
    for (int64_t column = threadIdx.x; column < tile.tokens; column += kThreads) {
      float gradient = 0.0f;
      if (counts) {  // else it is zero whatever the logits are
        const float logit = unshifted(tile, products, column);
        const float shift = column == row.shifted ? row.shift : 0.0f;
        gradient = softmax_scale * expf((logit + shift - top) - log_mass);
        if (column == row.target) gradient -= target_scale;
        if (tile.softcap > 0.0f) gradient *= softcap_slope(logit, tile.softcap);
      }
      round_to(gradient, products[column]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) bias_kernel(CrossEntropyTile tile, float* bias) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; column < tile.tokens; column += stride) {
    const T* gradients = static_cast<const T*>(tile.products) + column;
    float sum = 0.0f;
    for (int64_t row = 0; row < tile.rows; ++row) sum += to_float(gradients[row * tile.row_stride]);
    bias[column] += sum;
  }
}

template <class T>
void launch_sums(const CrossEntropyTile& tile, const CrossEntropySums& sums, const Launch& launch) {
  start<sums_kernel<T>>(launch, tile, sums);
}

template <class T>
void launch_gradients(const CrossEntropyTile& tile, const CrossEntropyScales& scales, const Launch& launch, int device) {
  start<gradients_kernel<T>>(launch, tile, scales);
  if (scales.bias == nullptr) return;
  start<bias_kernel<T>>({grid_for(tile.tokens, device), kThreads, launch.queue}, tile, scales.bias);
}

Launch a_block_a_row(const CrossEntropyTile& tile, void* stream, int device) {
  return {grid_for(tile.rows * kThreads, device), kThreads, static_cast<cudaStream_t>(stream)};
}

}  // namespace

const char* linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums, void* stream, int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const Launch launch = a_block_a_row(tile, stream, device);
  tile.dtype == Float::bfloat16 ? launch_sums<BFloat16>(tile, sums, launch) : launch_sums<float>(tile, sums, launch);
  return message(cudaGetLastError());
}

const char* linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales, void* stream,
                                          int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const Launch launch = a_block_a_row(tile, stream, device);
  tile.dtype == Float::bfloat16 ? launch_gradients<BFloat16>(tile, scales, launch, device)
                                : launch_gradients<float>(tile, scales, launch, device);
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
