// Top-k, top-p and min-p as one cut of the tempered logits: a block a row finds the largest logit, then by radix
// selection the exact depth below it at which the filter ends. Counts and masses are integers, so that atomic
// additions in any order give the same sums.
#include "cuda/glauber_rows.h"

namespace ggm::cuda {
namespace {

constexpr int kSelectThreads = 512;      // two blocks on a processor
constexpr int kMostSelectThreads = 1024;  // where there are fewer rows than processors, one has the processor for itself
constexpr int kDigits = 256;
constexpr int kCopies = 8;  // of the histogram: most depths have few leading digits, which threads must not queue for
constexpr int kBinsPerLane = kDigits / kWarp;
constexpr uint32_t kDeepest = 0x7F800000u;  // of -inf

// 64-bit sums in two words: shared memory adds 32 bits at a time.
struct Histogram {
  uint32_t low[kDigits * kCopies], high[kDigits * kCopies];
};

struct Shared {
  Histogram histogram;
  float of_warp[kMostSelectThreads / kWarp];
  uint64_t below, target;  // weight of the digits below those chosen; weight to reach
  uint32_t digit;
};

template <class T>
struct Row {
  const T* logits;
  uint32_t tokens;
  bool aligned;
  float top, inverse_temperature;
};

// What a token counts, and how much of all must be reached.
struct One {
  uint64_t count;
  __device__ __forceinline__ uint64_t of(float) const { return 1; }
  __device__ __forceinline__ uint64_t target(uint64_t) const { return count; }
};
struct Mass {
  double top_p;
  __device__ __forceinline__ uint64_t of(float z) const { return mass_units(expf(z)); }
  __device__ __forceinline__ uint64_t target(uint64_t total) const { return nucleus_target(top_p, total); }
};

// In every thread; NaN where the row has one.
template <class T>
__device__ __forceinline__ float row_top(const Row<T>& row, Shared& shared) {
  float top = minus_infinity();
  for (uint32_t at = threadIdx.x * Chunk<T>::kSize; at < row.tokens; at += blockDim.x * Chunk<T>::kSize) {
    const Chunk<T> chunk = load_chunk(row.logits, at, row.tokens, row.aligned);
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) top = larger_or_nan(top, chunk.value(j));
  }
  top = warp_largest(top);
  if (threadIdx.x % kWarp == 0) shared.of_warp[threadIdx.x / kWarp] = top;
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  for (int warp = 0; warp < warps; ++warp) top = larger_or_nan(top, shared.of_warp[warp]);
  return top;
}

__device__ __forceinline__ void clear(Histogram& histogram) {
  for (int bin = threadIdx.x; bin < kDigits * kCopies; bin += blockDim.x) histogram.low[bin] = histogram.high[bin] = 0;
}

__device__ __forceinline__ void add(Histogram& histogram, uint32_t digit, uint64_t weight) {
  const int bin = digit * kCopies + threadIdx.x % kCopies;
  const uint32_t low = static_cast<uint32_t>(weight);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + carry_of(atomicAdd(&histogram.low[bin], low), low);
  if (high != 0) atomicAdd(&histogram.high[bin], high);
}

__device__ __forceinline__ uint64_t weight_of(const Histogram& histogram, int digit) {
  uint64_t weight = 0;
#pragma unroll
  for (int copy = 0; copy < kCopies; ++copy) {
    const int bin = digit * kCopies + copy;
    weight += static_cast<uint64_t>(histogram.high[bin]) << 32 | histogram.low[bin];
  }
  return weight;
}

// Weights of the tokens that share the digits chosen so far and are no deeper than `limit`, by their next digit.
// Tokens beyond the end of the row are as deep as -inf, which no selection of what is there depends on.
template <class T, class Weight>
__device__ __forceinline__ void fill_histogram(const Row<T>& row, Shared& shared, const Weight& weight, uint32_t prefix,
                                               uint32_t prefix_mask, int shift, uint32_t limit) {
  for (uint32_t at = threadIdx.x * Chunk<T>::kSize; at < row.tokens; at += blockDim.x * Chunk<T>::kSize) {
    const Chunk<T> chunk = load_chunk(row.logits, at, row.tokens, row.aligned);
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) {
      const float z = tempered(chunk.value(j), row.top, row.inverse_temperature);
      const uint32_t depth = depth_bits(z);
      if ((depth & prefix_mask) != prefix || depth > limit) continue;
      add(shared.histogram, depth >> shift & (kDigits - 1), weight.of(z));
    }
  }
}

// By the first warp: the first digit at which the target is reached.
template <class Weight>
__device__ __forceinline__ void choose_digit(Shared& shared, const Weight& weight, bool is_first) {
  const int lane = threadIdx.x;
  uint64_t own = 0;
#pragma unroll 1
  for (int bin = 0; bin < kBinsPerLane; ++bin) own += weight_of(shared.histogram, lane * kBinsPerLane + bin);
  uint64_t upto = own;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, upto, distance);
    if (lane >= distance) upto += before;
  }
  const uint64_t total = __shfl_sync(kAllLanes, upto, kWarp - 1);
  const uint64_t target = is_first ? weight.target(total) : shared.target;
  const uint64_t below = is_first ? 0 : shared.below;
  const unsigned reached = __ballot_sync(kAllLanes, below + upto >= target);
  __syncwarp();  // all have read the target and what is below before one writes them anew
  const int chooser = reached == 0 ? kWarp - 1 : __ffs(reached) - 1;
  if (lane != chooser) return;
  uint64_t sum = below + upto - own;
  int digit = lane * kBinsPerLane;
  for (int bin = 0; bin + 1 < kBinsPerLane; ++bin) {
    const uint64_t next = sum + weight_of(shared.histogram, digit);
    if (next >= target) break;
    sum = next;
    ++digit;
  }
  shared.below = sum;
  shared.target = target;
  shared.digit = static_cast<uint32_t>(digit);
}

// The least depth down to which the tokens no deeper than `limit` reach the target.
template <class T, class Weight>
__device__ uint32_t select_depth(const Row<T>& row, Shared& shared, const Weight& weight, uint32_t limit) {
  uint32_t prefix = 0, prefix_mask = 0;
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    clear(shared.histogram);
    __syncthreads();
    fill_histogram(row, shared, weight, prefix, prefix_mask, shift, limit);
    __syncthreads();
    if (threadIdx.x < kWarp) choose_digit(shared, weight, shift == 24);
    __syncthreads();
    prefix |= shared.digit << shift;
    prefix_mask |= uint32_t{kDigits - 1} << shift;
  }
  return prefix;
}

// Largest logit and cut, in every thread.
template <class T>
__device__ __forceinline__ float2 threshold_of(const GlauberArgs& args, Row<T>& row, Shared& shared) {
  row.top = row_top(row, shared);
  float cut = minus_infinity();
  if (row.top > cut) {
    uint32_t limit = kDeepest;
    if (args.top_k < args.vocab_size) {
      limit = select_depth(row, shared, One{static_cast<uint64_t>(args.top_k)}, limit);
    }
    if (args.top_p < 1.0) limit = select_depth(row, shared, Mass{args.top_p}, limit);
    cut = fmaxf(depth_value(limit), args.log_min_p);
  }
  return make_float2(row.top, cut);
}

template <class T>
__global__ void __launch_bounds__(kMostSelectThreads) threshold_kernel(const __grid_constant__ GlauberArgs args,
                                                                   const __grid_constant__ LogitsTile tile,
                                                                   float2* thresholds) {
  __shared__ Shared shared;
  for (int64_t i = blockIdx.x; i < tile.rows; i += gridDim.x) {
    const T* logits = row_logits<T>(tile, i);
    const Place place = place_of(args, row_of(tile, i));
    if (is_settled(args, tile, place, present_logit(tile, logits, place))) continue;
    Row<T> row = {logits, static_cast<uint32_t>(tile.tokens), is_aligned(logits), 0.0f, args.inverse_temperature};
    const float2 threshold = threshold_of(args, row, shared);
    if (threadIdx.x == 0) thresholds[i] = threshold;
    __syncthreads();  // shared memory is free again
  }
}

template <class T>
void launch_threshold(const GlauberArgs& args, const LogitsTile& tile, float2* thresholds, int device,
                      cudaStream_t queue) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(tile.rows, INT32_MAX));
  const int most = tile.rows < processor_count(device) ? kMostSelectThreads : kSelectThreads;
  const int threads = threads_for(tile.tokens, Chunk<T>::kSize, most);
  start<threshold_kernel<T>>({grid, threads, queue}, args, tile, thresholds);
}

}  // namespace

const char* glauber_threshold(const GlauberArgs& args, const LogitsTile& tile, float* thresholds, void* stream,
                              int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  float2* pairs = reinterpret_cast<float2*>(thresholds);
  switch (tile.dtype) {
    case Float::bfloat16:
      launch_threshold<BFloat16>(args, tile, pairs, device, queue);
      break;
    case Float::float16:
      launch_threshold<Float16>(args, tile, pairs, device, queue);
      break;
    default:
      launch_threshold<float>(args, tile, pairs, device, queue);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
