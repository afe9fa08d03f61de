// Top-k, top-p and min-p as one threshold of the tempered logits: a block a row finds the largest logit, then by radix
// selection the exact depth below it at which the filter ends. Counts and masses are integers, so that atomic
// additions in any order give the same sums. After the first digit the tokens down to its end stay in shared memory
// where they fit: then the row has been read three times, however many filters there are.
#include "cuda/glauber_rows.h"

namespace ggm::cuda {
namespace {

constexpr int kSelectThreads = 512;      // two blocks on a processor
constexpr int kMostSelectThreads = 1024;  // where there are fewer rows than processors, one has the processor for itself
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits, kRounds = 3;
constexpr int kFirstShift = 31 - kDigitBits;
constexpr int kCopies = 2;  // of the histogram: many depths share their first digit, which threads must not queue for
constexpr uint32_t kMostCandidates = 3072;
constexpr uint32_t kDeepest = 0x7F800000u;  // of -inf

// 64-bit sums in two words: shared memory adds 32 bits at a time.
struct Histogram {
  uint32_t low[kDigits * kCopies], high[kDigits * kCopies];
};

struct Shared {
  Histogram histogram;
  float candidates[kMostCandidates];  // tempered logits, in any order
  uint32_t found;                     // how many there are, those included that have no room
  float of_warp[kMostSelectThreads / kWarp];
  uint64_t weight_of_warp[kMostSelectThreads / kWarp];
  uint64_t below, target;  // weight of the digits below those chosen; weight to reach
  uint32_t digit;
};

template <class T>
struct Row {
  RowLogits<T> logits;
  bool aligned, is_edited;
  float top, inverse_temperature;

  __device__ __forceinline__ Chunk<T> chunk(uint32_t at) const {
    return load_chunk(logits.logits, at, logits.tokens, aligned);
  }
  // As it counts; what is beyond the end stays -inf.
  __device__ __forceinline__ float edited(float g, uint32_t at) const {
    return is_edited && at < logits.tokens ? logits.edited(g, at) : g;
  }
};

// What a token counts, one or its mass, and how much of all must be reached.
struct Weight {
  bool is_mass;
  uint64_t count;
  double top_p;
  __device__ __forceinline__ uint64_t of(float z) const { return is_mass ? mass_units(expf(z)) : 1; }
  __device__ __forceinline__ uint64_t target(uint64_t total) const {
    return is_mass ? nucleus_target(top_p, total) : count;
  }
};

// In every thread; NaN where the row has one.
template <class T>
__device__ __forceinline__ float row_top(const Row<T>& row, Shared& shared) {
  float top = minus_infinity();
  for (uint32_t at = threadIdx.x * Chunk<T>::kSize; at < row.logits.tokens; at += blockDim.x * Chunk<T>::kSize) {
    const Chunk<T> chunk = row.chunk(at);
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) top = larger_or_nan(top, row.edited(chunk.value(j), at + j));
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

// Tempered logits of the row or, where they are all that is left in question, of the candidates. Tokens beyond the end
// of the row are as deep as -inf, which no selection of what is there depends on.
template <class T, class Use>
__device__ __forceinline__ void for_each_token(const Row<T>& row, const Shared& shared, bool are_held, const Use& use) {
  if (are_held) {
    for (uint32_t i = threadIdx.x; i < shared.found; i += blockDim.x) use(shared.candidates[i]);
    return;
  }
  for (uint32_t at = threadIdx.x * Chunk<T>::kSize; at < row.logits.tokens; at += blockDim.x * Chunk<T>::kSize) {
    const Chunk<T> chunk = row.chunk(at);
#pragma unroll
    for (int j = 0; j < Chunk<T>::kSize; ++j) {
      use(tempered(row.edited(chunk.value(j), at + j), row.top, row.inverse_temperature));
    }
  }
}

// The leading bits of a depth that are known.
struct Prefix {
  uint32_t bits = 0, mask = 0;
  __device__ __forceinline__ bool holds(uint32_t depth) const { return (depth & mask) == bits; }
  __device__ __forceinline__ uint32_t deepest() const { return bits | (~mask & 0x7FFFFFFFu); }
};

// Weights of the tokens that share the digits chosen so far and are no deeper than `limit`, by their next digit.
// Where it collects, the tokens down to the end of these digits become the candidates.
template <class T>
__device__ __forceinline__ void fill_histogram(const Row<T>& row, Shared& shared, const Weight& weight,
                                               const Prefix& prefix, int shift, uint32_t limit, bool are_held,
                                               bool collects) {
  const uint32_t deepest = min(limit, prefix.deepest());
  for_each_token(row, shared, are_held, [&](float z) {
    const uint32_t depth = depth_bits(z);
    if (depth > deepest) return;
    if (collects) {
      const uint32_t at = atomicAdd(&shared.found, 1u);
      if (at < kMostCandidates) {
        shared.candidates[at] = z;
      } else {
        collects = false;  // this thread at least need not count on
      }
    }
    const uint64_t units = prefix.holds(depth) ? weight.of(z) : 0;
    if (units != 0) add(shared.histogram, depth >> shift & (kDigits - 1), units);
  });
}

// The first digit at which the target is reached; the last one where none does. Each thread has some digits.
__device__ __forceinline__ void choose_digit(Shared& shared, const Weight& weight, bool is_first) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int width = (kDigits + blockDim.x - 1) / blockDim.x;
  const int begin = min(static_cast<int>(threadIdx.x) * width, kDigits), end = min(begin + width, kDigits);
  uint64_t own = 0;
#pragma unroll 1
  for (int digit = begin; digit < end; ++digit) own += weight_of(shared.histogram, digit);
  uint64_t upto = own;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, upto, distance);
    if (lane >= distance) upto += before;
  }
  if (lane == kWarp - 1) shared.weight_of_warp[warp] = upto;
  uint64_t sum = is_first ? 0 : shared.below;
  uint64_t target = is_first ? 0 : shared.target;
  __syncthreads();  // also, all have read the target and what is below before one writes them anew
  uint64_t total = sum;
  for (int other = 0; other < warps; ++other) {
    const uint64_t of_warp = shared.weight_of_warp[other];
    if (other < warp) sum += of_warp;
    total += of_warp;
  }
  sum += upto - own;
  if (is_first) target = weight.target(total);
  const bool is_reached = sum + own >= target && (sum < target || threadIdx.x == 0);
  const bool is_last = begin < end && end == kDigits;
  if (total < target ? !is_last : !is_reached) return;
  int digit = begin;
  for (; digit + 1 < end; ++digit) {
    const uint64_t next = sum + weight_of(shared.histogram, digit);
    if (next >= target) break;
    sum = next;
  }
  shared.below = sum;
  shared.target = target;
  shared.digit = static_cast<uint32_t>(digit);
}

// The least depth down to which the tokens no deeper than `limit` reach the target. Once the candidates are held, they
// are those of every later selection, which looks no deeper.
template <class T>
__device__ uint32_t select_depth(const Row<T>& row, Shared& shared, const Weight& weight, uint32_t limit,
                                 bool& are_held) {
  Prefix prefix;
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) {
    const int shift = max(kFirstShift - round * kDigitBits, 0);  // the last digit shares bits with the one before
    const bool collects = round > 0 && !are_held;
    clear(shared.histogram);
    if (collects && threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    fill_histogram(row, shared, weight, prefix, shift, limit, are_held, collects);
    __syncthreads();
    if (collects) are_held = shared.found <= kMostCandidates;
    choose_digit(shared, weight, round == 0);
    __syncthreads();
    prefix.bits |= shared.digit << shift;
    prefix.mask |= uint32_t{kDigits - 1} << shift;
  }
  return prefix.bits;
}

// Largest logit and threshold, in every thread.
template <class T>
__device__ __forceinline__ Threshold threshold_of(const Filters& filters, Row<T>& row, Shared& shared) {
  row.top = row_top(row, shared);
  float threshold = minus_infinity();
  if (row.top > threshold) {
    uint32_t limit = kDeepest;
    bool are_held = false;
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      const bool by_mass = (turn == 0) == filters.top_p_first;
      if (by_mass ? !(filters.top_p < 1.0) : filters.top_k >= row.logits.tokens) continue;
      // What top-p left may be fewer than k already: then all of it stays.
      const Weight weight = {by_mass, static_cast<uint64_t>(filters.top_k), filters.top_p};
      limit = min(limit, select_depth(row, shared, weight, limit, are_held));
    }
    threshold = fmaxf(depth_value(limit), filters.log_min_p);
  }
  return make_float2(row.top, threshold);
}

template <class T>
__global__ void __launch_bounds__(kMostSelectThreads) threshold_kernel(const __grid_constant__ GlauberArgs args,
                                                                   const __grid_constant__ LogitsTile tile,
                                                                   Threshold* thresholds) {
  __shared__ Shared shared;
  for (int64_t i = blockIdx.x; i < tile.rows; i += gridDim.x) {
    const Place place = place_of(args, row_of(tile, i));
    if (early_of<T>(args, tile, i, place).settles) continue;
    const Law law = law_of(args, place);
    const Filters filters = filters_of(args, place);
    Threshold threshold = make_float2(minus_infinity(), minus_infinity());
    if (!law.greedy && leaves_out(filters, args.vocab_size)) {
      const RowLogits<T> logits = logits_of<T>(args, tile, i, place);
      const bool is_edited = logits.bias != nullptr || logits.edits.softcap > 0.0f || logits.edits.shifted_token >= 0;
      Row<T> row = {logits, is_aligned(logits.logits), is_edited, 0.0f, law.inverse_temperature};
      threshold = threshold_of(filters, row, shared);
    }
    if (threadIdx.x == 0) thresholds[i] = threshold;
    __syncthreads();  // shared memory is free again
  }
}

template <class T>
void launch_threshold(const GlauberArgs& args, const LogitsTile& tile, Threshold* thresholds, int device,
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
  Threshold* pairs = reinterpret_cast<Threshold*>(thresholds);
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
