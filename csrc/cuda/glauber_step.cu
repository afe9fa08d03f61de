// A step in two kernels. The race: a block takes a part of a row in one pass (glauber_race.h). The settlement: the
// parts of a row merged, its token decided.
#include "cuda/glauber_race.h"

namespace ggm::cuda {
namespace {

constexpr int kPartsPerProcessor = 4;    // blocks that keep a processor's memory busy
constexpr int kBlocksPerProcessor = 4;   // at the least, by registers
constexpr int64_t kLeastPart = 4096;     // tokens; a shorter part would mostly wait for its first best score
constexpr int64_t kPartMultiple = 1024;  // tokens; keeps chunks aligned and whole blocks at work

// The state of a warp whose lanes agree on the top, in lane 0.
__device__ __forceinline__ RaceState warp_state(RaceState state) {
  const float best = warp_largest(state.score);
  uint32_t winner = state.score == best ? state.winner : 0xFFFFFFFFu;
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    winner = min(winner, __shfl_xor_sync(kAllLanes, winner, distance));
    state.raw_sum += __shfl_xor_sync(kAllLanes, state.raw_sum, distance);
    state.law_sum += __shfl_xor_sync(kAllLanes, state.law_sum, distance);
  }
  const unsigned owners = __ballot_sync(kAllLanes, state.score == best && state.winner == winner);
  state.z = __shfl_sync(kAllLanes, state.z, __ffs(owners) - 1);
  state.score = best;
  state.winner = winner;
  return state;
}

// The block's state, in thread 0.
__device__ __forceinline__ RaceState block_state(const RaceState& state, float inverse_temperature) {
  __shared__ RaceState of_warp[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const RaceState mine = warp_state(state);
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  RaceState merged = race_start();
  if (warp == 0) {
    if (lane < static_cast<int>(blockDim.x) / kWarp) merged = of_warp[lane];
    merged = merge_lanes(merged, kThreads / kWarp, inverse_temperature);
  }
  return merged;
}

template <class T, Mode kMode, Sums kSums>
__device__ __forceinline__ RaceState race_part(const Race& race, const Place& place, const T* row, int64_t i,
                                               uint32_t begin, uint32_t end, Champion* champion) {
  Runner<kMode, kSums> runner;
  runner.state = race_start();
  runner.bound = runner.cut = minus_infinity();
  runner.inverse_temperature = race.args.inverse_temperature;
  runner.slope = race.slope;
  runner.champion_top = runner.champion_score = minus_infinity();
  runner.champion = champion;
  bool has_law = true;
  if constexpr (kMode == Mode::filtered) {
    const float2 threshold = race.thresholds[i];
    runner.state.top = threshold.x;
    runner.cut = threshold.y;
    runner.state.has_nan = threshold.x != threshold.x;
    has_law = threshold.x > minus_infinity();
  }
  const Coordinates at_row = {counter_word0(kRaceStream, place.sample_id, 0), static_cast<uint32_t>(place.position),
                              counter_word2(place.sample_id), step_of(race.args)};
  if (has_law && is_aligned(row + begin)) {
    run<T, true>(runner, race, at_row, row, begin, end);
  } else if (has_law) {
    run<T, false>(runner, race, at_row, row, begin, end);
  }
  RaceState state = block_state(runner.state, runner.inverse_temperature);
  if (kSums == Sums::raw) state.law_sum = state.raw_sum;
  return state;
}

template <class T, Mode kMode, Sums kSums>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) race_kernel(const __grid_constant__ Race race) {
  __shared__ Champion champion;
  __shared__ float present;  // in shared memory, as registers are what the race is short of
  const int64_t parts = race.slots.parts, items = race.tile.rows * parts;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Place place = place_of(race.args, row_of(race.tile, item / parts));
    const T* row = row_logits<T>(race.tile, item / parts);
    const float g = present_logit(race.tile, row, place);
    RaceState state = race_start();
    if (threadIdx.x == 0) {
      present = g;
      champion = pack(minus_infinity(), minus_infinity());
    }
    if (!is_settled(race.args, race.tile, place, g)) {
      __syncthreads();
      const int64_t begin = item % parts * race.part_tokens;
      const int64_t end = min(begin + race.part_tokens, race.tile.tokens);
      state = race_part<T, kMode, kSums>(race, place, row, item / parts, static_cast<uint32_t>(min(begin, end)),
                                         static_cast<uint32_t>(end), &champion);
      __syncthreads();  // shared memory is free again
    }
    if (threadIdx.x == 0) {
      state.present = present;
      race.slots.states[item / parts * race.slots.slots + race.slots.slot_begin + item % parts] = state;
    }
  }
}

__device__ void settle(const GlauberArgs& args, int64_t row, const RaceState& state) {
  const float nan = float_of(0x7FC00000u);
  const Place place = place_of(args, row);
  const bool frozen = place.is_legal && is_frozen(args, place);
  bool stays = !place.is_legal || frozen;
  if (args.noise_rate != nullptr) {
    const float g = args.normalize ? state.present - log_sum_exp(state) : state.present;
    const float f = place.is_legal && !frozen ? row_verdict(args, place, g) : nan;
    stays = stays || row_keeps(args, place, f);
    if (args.keep_prob != nullptr) args.keep_prob[row] = sigmoid(f);
  }
  stays = stays || !has_winner(state);
  if (args.log_sum_exp != nullptr) args.log_sum_exp[row] = frozen ? nan : log_sum_exp(state);
  if (args.log_prob != nullptr) args.log_prob[row] = stays ? nan : args.greedy ? 0.0f : winner_log_prob(state);
  if (stays) return;
  if (args.token_bytes == 8) {
    static_cast<int64_t*>(args.tokens)[place.token_at] = state.winner;
  } else {
    static_cast<int32_t*>(args.tokens)[place.token_at] = static_cast<int32_t>(state.winner);
  }
}

// `width` lanes a row, a power of two.
__global__ void __launch_bounds__(kThreads) settle_kernel(const __grid_constant__ GlauberArgs args,
                                                          const __grid_constant__ LogitsTile tile, RaceSlots slots,
                                                          int width) {
  const int lane = threadIdx.x % width;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x / width;
  const int64_t in_warp = threadIdx.x % kWarp / width;
  int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp * (kWarp / width);  // row of the warp
  for (; first < tile.rows; first += stride) {
    const int64_t i = first + in_warp;
    RaceState state = race_start();
    for (int64_t slot = lane; i < tile.rows && slot < slots.slots; slot += width) {
      state = merge(state, slots.states[i * slots.slots + slot], args.inverse_temperature);
    }
    state = merge_lanes(state, width, args.inverse_temperature);
    if (lane == 0 && i < tile.rows) settle(args, row_of(tile, i), state);
  }
}

template <class T, Mode kMode, Sums kSums>
void launch_race(const Race& race, cudaStream_t queue) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(race.tile.rows * race.slots.parts, INT32_MAX));
  const int64_t most = std::min<int64_t>(race.part_tokens, race.tile.tokens);
  start<race_kernel<T, kMode, kSums>>({grid, threads_for(most, Chunk<T>::kSize, kThreads), queue}, race);
}

template <class T, Mode kMode>
void launch_race(const Race& race, Sums sums, cudaStream_t queue) {
  if (sums == Sums::none) {
    launch_race<T, kMode, Sums::none>(race, queue);
  } else if (sums == Sums::raw || kMode == Mode::greedy) {
    launch_race<T, kMode, Sums::raw>(race, queue);
  } else if constexpr (kMode != Mode::greedy) {
    launch_race<T, kMode, Sums::both>(race, queue);
  }
}

template <class T>
void launch_race(const Race& race, Sums sums, cudaStream_t queue) {
  if (race.args.greedy) {
    launch_race<T, Mode::greedy>(race, sums, queue);
  } else if (race.thresholds != nullptr) {
    launch_race<T, Mode::filtered>(race, sums, queue);
  } else {
    launch_race<T, Mode::plain>(race, sums, queue);
  }
}

Sums sums_for(const GlauberArgs& args) {
  const bool raw = args.log_sum_exp != nullptr || (args.noise_rate != nullptr && args.normalize);
  const bool law = args.log_prob != nullptr && !args.greedy;
  const bool law_is_raw = args.inverse_temperature == 1.0f && !has_filter(args);
  if (law && !law_is_raw) return Sums::both;
  return raw || law ? Sums::raw : Sums::none;
}

}  // namespace

int64_t glauber_parts(int64_t rows, int64_t tokens, int device) {
  const int64_t blocks = int64_t{processor_count(device)} * kPartsPerProcessor, of_rows = std::max<int64_t>(rows, 1);
  const int64_t wanted = (blocks + of_rows - 1) / of_rows;  // fewer would leave some processors a block more than others
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(tokens / kLeastPart, 1));
}

const char* glauber_race(const GlauberArgs& args, const LogitsTile& tile, const RaceSlots& slots,
                         const float* thresholds, void* stream, int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const int64_t share = (tile.tokens + slots.parts - 1) / slots.parts;
  const int64_t part_tokens = (share + kPartMultiple - 1) / kPartMultiple * kPartMultiple;
  const Race race = {args,        tile, slots, reinterpret_cast<const float2*>(thresholds), philox_keys(args.seed),
                     gate_slope(args.inverse_temperature), static_cast<int>(part_tokens)};
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (tile.dtype) {
    case Float::bfloat16:
      launch_race<BFloat16>(race, sums_for(args), queue);
      break;
    case Float::float16:
      launch_race<Float16>(race, sums_for(args), queue);
      break;
    default:
      launch_race<float>(race, sums_for(args), queue);
  }
  return message(cudaGetLastError());
}

const char* glauber_settle(const GlauberArgs& args, const LogitsTile& tile, const RaceSlots& slots, void* stream,
                           int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  int width = 1;
  while (width < kWarp && width < slots.slots) width *= 2;
  const unsigned grid = grid_for(tile.rows * width, device);
  start<settle_kernel>({grid, kThreads, static_cast<cudaStream_t>(stream)}, args, tile, slots, width);
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
