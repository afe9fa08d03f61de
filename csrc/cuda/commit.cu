// One block takes a row: radix selection finds, without a sort, where the accepted candidates end in their order, and
// a last pass writes. Costs are summed as integers, so that atomic additions in any order give the same sums.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/commit.h"
#include "numerics/counter.h"
#include "numerics/race_merge.h"

namespace ggm::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kMostThreads = 512;
constexpr int kDigits = 256;
constexpr int kBinsPerLane = kDigits / kWarp;
constexpr int kCopies = 8;         // of the histogram: most scores share their first digit, which threads would queue for
constexpr int64_t kHeld = 4096;    // positions whose keys stay in shared memory; those of others are made again

// Of the candidates in question, by their next digit. 64-bit sums in two words: shared memory adds 32 bits at a time.
struct Histogram {
  uint32_t count[kDigits * kCopies], low[kDigits * kCopies], high[kDigits * kCopies];
};

struct Shared {
  Histogram histogram;
  uint32_t keys[kHeld];
  uint32_t of_warp[kMostThreads / kWarp];
  Magnitudes magnitudes_of_warp[kMostThreads / kWarp];
  Prefix before;  // the candidates before the digits chosen so far
  uint32_t digit;
  uint32_t equals;  // candidates of the digit
  bool is_open;
};

template <class T>
__device__ __forceinline__ T of_row(const PerRow<T>& limit, int64_t row) {
  return limit.values == nullptr ? limit.value : limit.values[row * limit.stride];
}

template <class T>
struct Row {
  const CommitArgs& args;
  Shared& shared;
  const T* score;
  const uint8_t* eligible;
  float threshold;

  __device__ __forceinline__ bool is_eligible(int64_t i) const {
    return eligible == nullptr || eligible[i * args.eligible.stride] != 0;
  }
  __device__ __forceinline__ uint32_t make_key(int64_t i) const {
    return candidate_key(to_float(score[i * args.score.stride]), is_eligible(i), threshold);
  }
  __device__ __forceinline__ uint32_t key(int64_t i) const { return i < kHeld ? shared.keys[i] : make_key(i); }
};

template <class T>
__device__ __forceinline__ Row<T> row_of(const CommitArgs& args, Shared& shared, int64_t row) {
  const uint8_t* eligible = args.eligible.data == nullptr ? nullptr : args.eligible.data + row * args.eligible.row_stride;
  return {args, shared, static_cast<const T*>(args.score.data) + row * args.score.row_stride, eligible,
          of_row(args.threshold, row)};
}

// Makes the keys; the largest magnitudes of scores, in every thread.
template <class T>
__device__ __forceinline__ Magnitudes fill_keys(const Row<T>& row, Shared& shared) {
  Magnitudes largest = {0u, 0u};
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < row.args.length; i += blockDim.x) {
    const uint32_t key = row.make_key(i);
    if (i < kHeld) shared.keys[i] = key;
    largest.take(magnitudes_of(key));
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const uint32_t gain = __shfl_xor_sync(kAllLanes, largest.gain, distance);
    const uint32_t cost = __shfl_xor_sync(kAllLanes, largest.cost, distance);
    largest.take({gain, cost});
  }
  if (threadIdx.x % kWarp == 0) shared.magnitudes_of_warp[threadIdx.x / kWarp] = largest;
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  for (int warp = 0; warp < warps; ++warp) largest.take(shared.magnitudes_of_warp[warp]);
  return largest;
}

__device__ __forceinline__ void clear(Histogram& histogram) {
  for (int bin = threadIdx.x; bin < kDigits * kCopies; bin += blockDim.x) {
    histogram.count[bin] = histogram.low[bin] = histogram.high[bin] = 0;
  }
}

__device__ __forceinline__ void add(Histogram& histogram, int bin, uint64_t units) {
  const uint32_t low = static_cast<uint32_t>(units);
  const uint32_t high = static_cast<uint32_t>(units >> 32) + carry_of(atomicAdd(&histogram.low[bin], low), low);
  if (high != 0) atomicAdd(&histogram.high[bin], high);
}

template <class T>
__device__ __forceinline__ void fill_histogram(const Row<T>& row, Histogram& histogram, uint32_t prefix,
                                               uint32_t prefix_mask, int shift, const CostUnit& unit) {
  for (int64_t i = threadIdx.x; i < row.args.length; i += blockDim.x) {
    const uint32_t key = row.key(i);
    if (key == kNoCandidate || (key & prefix_mask) != prefix) continue;
    const int bin = static_cast<int>(key >> shift & (kDigits - 1)) * kCopies + threadIdx.x % kCopies;
    atomicAdd(&histogram.count[bin], 1u);
    if (row.args.has_budget) add(histogram, bin, static_cast<uint64_t>(cost_units(key_score(key), unit)));
  }
}

__device__ __forceinline__ Prefix bin_sums(const Histogram& histogram, int digit) {
  Prefix sums = {0, 0};
#pragma unroll
  for (int copy = 0; copy < kCopies; ++copy) {
    const int bin = digit * kCopies + copy;
    sums.count += histogram.count[bin];
    sums.units += static_cast<int64_t>(static_cast<uint64_t>(histogram.high[bin]) << 32 | histogram.low[bin]);
  }
  return sums;
}

// By the first warp: the last digit with candidates at which the order is still open.
__device__ __forceinline__ void choose_digit(Shared& shared, const Limits& limits) {
  const int lane = threadIdx.x;
  Prefix own = {0, 0};
#pragma unroll 1
  for (int bin = 0; bin < kBinsPerLane; ++bin) {
    const Prefix sums = bin_sums(shared.histogram, lane * kBinsPerLane + bin);
    own = {own.count + sums.count, own.units + sums.units};
  }
  Prefix upto = own;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t count = __shfl_up_sync(kAllLanes, upto.count, distance);
    const int64_t units = __shfl_up_sync(kAllLanes, upto.units, distance);
    if (lane >= distance) upto = {upto.count + count, upto.units + units};
  }
  Prefix next = {shared.before.count + upto.count - own.count, shared.before.units + upto.units - own.units};
  Prefix before = next;
  int digit = -1;
  uint32_t equals = 0;
#pragma unroll 1
  for (int bin = 0; bin < kBinsPerLane && is_open(limits, next); ++bin) {
    const Prefix sums = bin_sums(shared.histogram, lane * kBinsPerLane + bin);
    if (sums.count == 0) continue;
    digit = lane * kBinsPerLane + bin;
    equals = static_cast<uint32_t>(sums.count);
    before = next;
    next = {next.count + sums.count, next.units + sums.units};
  }
  const unsigned found = __ballot_sync(kAllLanes, digit >= 0);
  __syncwarp();  // every lane has read shared.before: a ballot alone orders no memory
  if (lane == 0) shared.is_open = found != 0;
  if (found == 0 || lane != kWarp - 1 - __clz(static_cast<int>(found))) return;
  shared.digit = static_cast<uint32_t>(digit);
  shared.equals = equals;
  shared.before = before;
}

// Scores above the key are accepted, and so many of those equal to it, first positions first; of how many.
struct End {
  uint32_t key;
  int64_t equals, of;
};

template <class T>
__device__ __forceinline__ End find_end(const Row<T>& row, Shared& shared, Limits limits, float budget,
                                        const Magnitudes& largest) {
  if (!limits.has_budget && limits.count >= row.args.length) return {kNoCandidate, 0, 0};
  const CostUnit unit = cost_unit(largest, budget, row.args.length);
  if (limits.has_budget) limits.budget_units = budget_units(budget, unit);
  uint32_t prefix = 0, prefix_mask = 0;
  if (threadIdx.x == 0) shared.before = {0, 0};
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    clear(shared.histogram);
    __syncthreads();
    fill_histogram(row, shared.histogram, prefix, prefix_mask, shift, unit);
    __syncthreads();
    if (threadIdx.x < kWarp) choose_digit(shared, limits);
    __syncthreads();
    if (!shared.is_open) return {0, 0, 0};
    prefix |= shared.digit << shift;
    prefix_mask |= uint32_t{kDigits - 1} << shift;
  }
  const float score = key_score(prefix);
  return {prefix, equals_accepted(limits, shared.before, score, cost_units(score, unit)), shared.equals};
}

// How many threads before this one, in the block, say yes; in `total` how many of all.
__device__ __forceinline__ int64_t count_before(Shared& shared, bool yes, int64_t& total) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned lanes = __ballot_sync(kAllLanes, yes);
  if (lane == 0) shared.of_warp[warp] = static_cast<uint32_t>(__popc(lanes));
  __syncthreads();
  int64_t before = __popc(lanes & ((1u << lane) - 1u));
  total = 0;
  for (unsigned other = 0; other < blockDim.x / kWarp; ++other) {
    before += other < warp ? shared.of_warp[other] : 0;
    total += shared.of_warp[other];
  }
  __syncthreads();
  return before;
}

__device__ __forceinline__ void store_token(const CommitArgs& args, int64_t row, int64_t i, int64_t token) {
  const int64_t at = row * args.tokens.row_stride + i * args.tokens.stride;
  if (args.token_bytes == 8) {
    static_cast<int64_t*>(args.tokens.data)[at] = token;
  } else {
    static_cast<int32_t*>(args.tokens.data)[at] = static_cast<int32_t>(token);
  }
}

__device__ __forceinline__ int64_t load_proposal(const CommitArgs& args, int64_t row, int64_t i) {
  const int64_t at = row * args.proposal.row_stride + i * args.proposal.stride;
  return args.proposal_bytes == 8 ? static_cast<const int64_t*>(args.proposal.data)[at]
                                  : static_cast<const int32_t*>(args.proposal.data)[at];
}

template <class T>
__device__ __forceinline__ void write_row(const Row<T>& inputs, Shared& shared, int64_t row, const End& end) {
  const CommitArgs& args = inputs.args;
  const uint64_t sample_id = static_cast<uint64_t>(args.sample_ids == nullptr ? row : args.sample_ids[row]);
  const uint32_t step = static_cast<uint32_t>(args.step_pointer == nullptr ? args.step : *args.step_pointer);
  int64_t equals = 0;  // of earlier rounds
  for (int64_t begin = 0; begin < args.length; begin += blockDim.x) {
    const int64_t i = begin + threadIdx.x;
    const uint32_t key = i < args.length ? inputs.key(i) : kNoCandidate;
    bool is_accepted = key < end.key;
    const bool is_equal = key == end.key && key != kNoCandidate;
    if (end.equals >= end.of) {
      is_accepted |= is_equal;
    } else {
      int64_t all;
      is_accepted |= is_equal & (equals + count_before(shared, is_equal, all) < end.equals);
      equals += all;
    }
    if (i >= args.length) continue;
    if (is_accepted) {
      store_token(args, row, i, load_proposal(args, row, i));
    } else if (args.noises_rest && inputs.is_eligible(i)) {
      store_token(args, row, i,
                  noise_token(args.noise, args.seed, kCommitStream, step, sample_id, static_cast<uint32_t>(i)));
    }
    if (args.accepted.data != nullptr) {
      args.accepted.data[row * args.accepted.row_stride + i * args.accepted.stride] = is_accepted;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) commit_kernel(const __grid_constant__ CommitArgs args) {
  __shared__ Shared shared;
  for (int64_t row = blockIdx.x; row < args.batch; row += gridDim.x) {
    const Row<T> inputs = row_of<T>(args, shared, row);
    const Magnitudes largest = fill_keys(inputs, shared);
    const float budget = of_row(args.budget, row);
    const Limits limits = {of_row(args.count, row), 0, args.has_budget, !is_finite(budget)};
    const End end = find_end(inputs, shared, limits, budget, largest);
    __syncthreads();  // keys are there, what the selection read is free again
    write_row(inputs, shared, row, end);
    __syncthreads();
  }
}

template <class T>
void launch(const CommitArgs& args, cudaStream_t queue) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(args.batch, INT32_MAX));
  const int64_t warps = (args.length + kWarp - 1) / kWarp;
  const int threads = static_cast<int>(std::min<int64_t>(warps * kWarp, kMostThreads));
  start<commit_kernel<T>>({grid, threads, queue}, args);
}

}  // namespace

const char* commit(const CommitArgs& args, void* stream, int device) {
  if (args.batch == 0 || args.length == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case Float::bfloat16:
      launch<BFloat16>(args, queue);
      break;
    case Float::float16:
      launch<Float16>(args, queue);
      break;
    default:
      launch<float>(args, queue);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
