// Forward and the gradient of hidden: one warp a row, its lanes side by side along hidden_size, sixteen bytes
// each. From logits: lanes side by side along the candidates. The gradient of the weight: candidates come sorted by token, a block takes all entries of one token in
// their order, so sums do not depend on timing. Every kernel moves each gathered row once.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/half.h"
#include "numerics/sigmoid_bce.h"

namespace ggm::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kRowsPerBlock = kThreads / kWarp;

template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
  T values[kSize];
};

__device__ __forceinline__ int64_t candidate_at(const SigmoidBceArgs& args, int64_t index) {
  return args.candidate_bytes == 8 ? static_cast<const int64_t*>(args.candidates)[index]
                                   : static_cast<const int32_t*>(args.candidates)[index];
}

// An id out of range is the caller's error; it must not become an access out of bounds.
__device__ __forceinline__ bool legal(const SigmoidBceArgs& args, int64_t token) {
  return token >= 0 && token < args.vocab_size;
}

__device__ __forceinline__ float signal_at(const SigmoidBceArgs& args, int64_t row, int64_t column) {
  return args.signal_weight[row * args.signal_row_stride + column * args.signal_stride];
}

__device__ __forceinline__ float noise_at(const SigmoidBceArgs& args, int64_t row, int64_t column) {
  return args.noise_weight[row * args.noise_row_stride + column * args.noise_stride];
}

template <class T, int kSize>
__device__ __forceinline__ float warp_dot(const T* a, const T* b, int64_t size, int lane) {
  float sum = 0.0f;
#pragma unroll 2  // 64 bytes of a lane on the way; four times would spill
  for (int64_t i = static_cast<int64_t>(lane) * kSize; i < size; i += kWarp * kSize) {
    const Pack<T, kSize> x = *reinterpret_cast<const Pack<T, kSize>*>(a + i);
    const Pack<T, kSize> y = *reinterpret_cast<const Pack<T, kSize>*>(b + i);
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum += to_float(x.values[k]) * to_float(y.values[k]);
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  return sum;
}

// Over `width` neighbouring lanes, a power of two, in each of them.
__device__ __forceinline__ double sum_of_lanes(double value, int width) {
  for (int distance = width / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  return value;
}

// Loss of one candidate, of the logit f before its row's offset; keeps the logit for the gradients.
__device__ __forceinline__ float finish_candidate(const SigmoidBceArgs& args, float* candidate_logits, int64_t row,
                                                  int64_t column, float f) {
  if (args.offset != nullptr) f += args.offset[row];
  candidate_logits[row * args.count + column] = f;
  return candidate_loss(f, signal_at(args, row, column), noise_at(args, row, column));
}

// A warp a row. Its lanes share each product; of every 32 candidates each finishes one. Losses add up in double: a
// row may have as many candidates as there are tokens.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads, 4) forward_kernel(SigmoidBceArgs args, float* loss, float* candidate_logits) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * kRowsPerBlock;
  for (int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp; row < args.rows; row += stride) {
    const T* hidden = static_cast<const T*>(args.hidden) + row * args.hidden_stride;
    double total = 0.0;
#pragma unroll 1
    for (int64_t begin = 0; begin < args.count; begin += kWarp) {
      const int turns = static_cast<int>(min(int64_t{kWarp}, args.count - begin));
      float own = 0.0f;
#pragma unroll 1
      for (int turn = 0; turn < turns; ++turn) {
        const int64_t token = candidate_at(args, row * args.count + begin + turn);
        if (!legal(args, token)) continue;
        const T* weight = static_cast<const T*>(args.weight) + token * args.weight_stride;
        float f = warp_dot<T, kSize>(hidden, weight, args.hidden_size, lane);
        if (args.bias != nullptr) f += to_float(static_cast<const T*>(args.bias)[token]);
        own = lane == turn ? f : own;
      }
      if (lane < turns) total += finish_candidate(args, candidate_logits, row, begin + lane, own);
    }
    total = sum_of_lanes(total, kWarp);
    if (lane == 0) loss[row] = static_cast<float>(total);
  }
}

// From logits: `width` lanes a row, a power of two, its candidates dealt out among them.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(SigmoidBceArgs args, float* loss, float* candidate_logits,
                                                          int width) {
  const int lane = threadIdx.x % width;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x / width;
  int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp * (kWarp / width);  // row of the warp
  for (; first < args.rows; first += stride) {
    const int64_t row = first + threadIdx.x % kWarp / width;
    double total = 0.0;
    for (int64_t column = lane; row < args.rows && column < args.count; column += width) {
      const int64_t token = candidate_at(args, row * args.count + column);
      const T* logits = static_cast<const T*>(args.hidden) + row * args.hidden_stride;
      const float f = legal(args, token) ? to_float(logits[token]) : 0.0f;
      total += finish_candidate(args, candidate_logits, row, column, f);
    }
    total = sum_of_lanes(total, width);
    if (lane == 0 && row < args.rows) loss[row] = static_cast<float>(total);
  }
}

__device__ __forceinline__ float logit_gradient(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients,
                                                int64_t row, int64_t column) {
  const float f = gradients.candidate_logits[row * args.count + column];
  return gradients.loss[row] *
         candidate_loss_derivative(f, signal_at(args, row, column), noise_at(args, row, column));
}

// sums += scale * one pack of a row
template <class T, int kSize>
__device__ __forceinline__ void add_scaled(float (&sums)[kSize], float scale, const T* row) {
  const Pack<T, kSize> pack = *reinterpret_cast<const Pack<T, kSize>*>(row);
#pragma unroll
  for (int k = 0; k < kSize; ++k) sums[k] += scale * to_float(pack.values[k]);
}

template <class T, int kSize>
__device__ __forceinline__ void store_rounded(T* to, const float (&sums)[kSize]) {
  Pack<T, kSize> pack;
#pragma unroll
  for (int k = 0; k < kSize; ++k) round_to(sums[k], pack.values[k]);
  if constexpr (sizeof pack == sizeof(uint4)) {
    uint4 whole;
    memcpy(&whole, &pack, sizeof whole);
    __stcg(reinterpret_cast<uint4*>(to), whole);  // an assignment is compiled to a store for each value
  } else {
    *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
  }
}

// Zeros, or what shared candidates add already, `at` elements into it.
template <int kSize>
__device__ __forceinline__ void start_sums(float (&sums)[kSize], const float* shared, int64_t at) {
#pragma unroll
  for (int k = 0; k < kSize; ++k) sums[k] = shared == nullptr ? 0.0f : shared[at + k];
}

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) hidden_kernel(SigmoidBceArgs args, SigmoidBceGradients gradients) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * kRowsPerBlock;
  for (int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp; row < args.rows; row += stride) {
    for (int64_t i = static_cast<int64_t>(lane) * kSize; i < args.hidden_size; i += kWarp * kSize) {
      float sums[kSize];
      start_sums<kSize>(sums, gradients.shared_hidden, row * args.hidden_size + i);
#pragma unroll 1  // more would spill on sm_120
      for (int64_t column = 0; column < args.count; ++column) {
        const int64_t token = candidate_at(args, row * args.count + column);
        if (!legal(args, token)) continue;
        const float gradient = logit_gradient(args, gradients, row, column);
        const T* weight = static_cast<const T*>(args.weight) + token * args.weight_stride + i;
        add_scaled<T, kSize>(sums, gradient, weight);
      }
      store_rounded<T, kSize>(static_cast<T*>(gradients.hidden) + row * args.hidden_size + i, sums);
    }
  }
}

// entries: the logit that each candidate names, sorted, -1 for none; order: where in candidates each came from.
template <class T>
__global__ void __launch_bounds__(kThreads) logits_kernel(SigmoidBceArgs args, SigmoidBceGradients gradients,
                                                          const int64_t* entries, const int64_t* order, int64_t size) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; first < size; first += stride) {
    const int64_t logit = entries[first];
    // Whoever meets the first entry of a logit takes all of them: a sum in order, rounded once.
    if (logit < 0 || (first > 0 && entries[first - 1] == logit)) continue;
    float sum = 0.0f;
    for (int64_t entry = first; entry < size && entries[entry] == logit; ++entry) {
      sum += logit_gradient(args, gradients, order[entry] / args.count, order[entry] % args.count);
    }
    round_to(sum, static_cast<T*>(gradients.logits)[logit]);
  }
}

// tokens: all candidates, sorted; order: where in candidates each came from.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) token_kernel(SigmoidBceArgs args, SigmoidBceGradients gradients,
                                                         const int64_t* tokens, const int64_t* order, int64_t size) {
  for (int64_t first = blockIdx.x; first < size; first += gridDim.x) {
    const int64_t token = tokens[first];
    // Whoever meets the first entry of a token takes all of them.
    if (!legal(args, token) || (first > 0 && tokens[first - 1] == token)) continue;
    // Where shared candidates, too, name the token.
    const int64_t place = gradients.places == nullptr ? -1 : gradients.places[order[first]];
    if (gradients.bias != nullptr && threadIdx.x == 0) {
      float sum = place < 0 ? 0.0f : gradients.shared_bias[place];
      for (int64_t entry = first; entry < size && tokens[entry] == token; ++entry) {
        sum += logit_gradient(args, gradients, order[entry] / args.count, order[entry] % args.count);
      }
      round_to(sum, static_cast<T*>(gradients.bias)[token]);
    }
    if (gradients.weight == nullptr) continue;
    for (int64_t i = int64_t{threadIdx.x} * kSize; i < args.hidden_size; i += int64_t{blockDim.x} * kSize) {
      float sums[kSize];
      start_sums<kSize>(sums, place < 0 ? nullptr : gradients.shared_weight, place * args.hidden_size + i);
      for (int64_t entry = first; entry < size && tokens[entry] == token; ++entry) {
        const int64_t row = order[entry] / args.count;
        const float gradient = logit_gradient(args, gradients, row, order[entry] % args.count);
        const T* hidden = static_cast<const T*>(args.hidden) + row * args.hidden_stride + i;
        add_scaled<T, kSize>(sums, gradient, hidden);
      }
      store_rounded<T, kSize>(static_cast<T*>(gradients.weight) + token * args.hidden_size + i, sums);
    }
  }
}

// Whether every row of every matrix can be read in packs of kSize.
template <class T, int kSize>
bool moves_in_packs(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(Pack<T, kSize>) == 0; };
  return args.hidden_size % kSize == 0 && args.hidden_stride % kSize == 0 && args.weight_stride % kSize == 0 &&
         aligned(args.hidden) && aligned(args.weight) && aligned(gradients.hidden) && aligned(gradients.weight);
}

template <class T, int kSize>
void launch_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, const int64_t* tokens,
                     const int64_t* order, int device, cudaStream_t queue) {
  if (gradients.hidden != nullptr) {
    start<hidden_kernel<T, kSize>>({grid_for(args.rows * kWarp, device), kThreads, queue}, args, gradients);
  }
  if (gradients.weight != nullptr || gradients.bias != nullptr) {
    const int64_t size = args.rows * args.count;
    // As many threads as packs in a row, in whole warps.
    const int64_t packs = (args.hidden_size + kSize - 1) / kSize;
    const int threads = static_cast<int>(std::clamp<int64_t>((packs + kWarp - 1) / kWarp * kWarp, kWarp, kThreads));
    const unsigned grid = grid_for(size * kThreads, device);
    start<token_kernel<T, kSize>>({grid, threads, queue}, args, gradients, tokens, order, size);
  }
}

template <class T>
void launch_forward(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int device, cudaStream_t queue) {
  constexpr int kSize = 16 / sizeof(T);
  if (!args.linear) {
    int width = 1;
    while (width < kWarp && width < args.count) width *= 2;
    start<gather_kernel<T>>({grid_for(args.rows * width, device), kThreads, queue}, args, loss, candidate_logits, width);
    return;
  }
  const unsigned grid = grid_for(args.rows * kWarp, device);
  if (moves_in_packs<T, kSize>(args, {})) {
    start<forward_kernel<T, kSize>>({grid, kThreads, queue}, args, loss, candidate_logits);
  } else {
    start<forward_kernel<T, 1>>({grid, kThreads, queue}, args, loss, candidate_logits);
  }
}

template <class T>
void launch_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, const int64_t* tokens,
                     const int64_t* order, int device, cudaStream_t queue) {
  constexpr int kSize = 16 / sizeof(T);
  if (gradients.logits != nullptr) {
    const int64_t size = args.rows * args.count;
    start<logits_kernel<T>>({grid_for(size, device), kThreads, queue}, args, gradients, tokens, order, size);
  } else if (moves_in_packs<T, kSize>(args, gradients)) {
    launch_backward<T, kSize>(args, gradients, tokens, order, device, queue);
  } else {
    launch_backward<T, 1>(args, gradients, tokens, order, device, queue);
  }
}

}  // namespace

const char* sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, void* stream, int device) {
  if (args.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case Float::bfloat16:
      launch_forward<BFloat16>(args, loss, candidate_logits, device, queue);
      break;
    case Float::float16:
      launch_forward<Float16>(args, loss, candidate_logits, device, queue);
      break;
    default:
      launch_forward<float>(args, loss, candidate_logits, device, queue);
  }
  return message(cudaGetLastError());
}

const char* sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients,
                                 const int64_t* tokens, const int64_t* order, void* stream, int device) {
  if (args.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case Float::bfloat16:
      launch_backward<BFloat16>(args, gradients, tokens, order, device, queue);
      break;
    case Float::float16:
      launch_backward<Float16>(args, gradients, tokens, order, device, queue);
      break;
    default:
      launch_backward<float>(args, gradients, tokens, order, device, queue);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
