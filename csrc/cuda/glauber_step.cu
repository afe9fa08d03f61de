// A step in two kernels. A warp takes a group of a row's tokens, reads it once and leaves a record of it. Then a warp
// takes a row: its groups race by their records, the tokens of the group that won by their logits, which are read once
// more. A vocabulary of one group needs the second alone.
#include "cuda/glauber_draw.h"

namespace ggm::cuda {
namespace {

constexpr int kGroupBlocks = 3;  // a processor's, of 16-bit logits; float32 held at an odd address takes more registers
constexpr int kDrawThreads = 128;
constexpr int kDrawBlocks = 4;  // a processor's: more would spill
constexpr int64_t kWarpsPerProcessor = 128;  // warps with groups of their own before one takes several
constexpr int64_t kMostGroups = 8;           // of a warp: they share what must be known of the row

struct Step {
  GlauberArgs args;
  LogitsTile tile;
  RaceWork work;
  const Threshold* thresholds;
  Wants wants;
  int64_t groups;
  int64_t groups_of_warp;
};

template <class T>
__device__ __forceinline__ Row<T> row_at(const Step& step, int64_t i, const Place& place) {
  const int64_t vocab_size = step.args.vocab_size;
  const Law law = filtered_law(step.args, place, step.thresholds, i);
  return {logits_of<T>(step.args, step.tile, i, place), place.race, philox_keys(seed_of(step.args, place)), law,
          step.wants, vocab_size > kRaceGroup && !law.greedy};
}

__device__ __forceinline__ int64_t warp_of_grid() {
  return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
}
__device__ __forceinline__ int64_t warps_of_grid() { return int64_t{gridDim.x} * blockDim.x / kWarp; }

// kFull: with edits, filters or by-products that ask for more than one sum.
template <class T, bool kFull>
__device__ __forceinline__ GroupRecord record_at(const Row<T>& row, uint32_t begin, float row_top) {
  if constexpr (kFull) {
    return full_record(edited_group(row.logits, begin), row.law, row.wants, row_top);
  } else {
    return plain_record(load_group(row.logits.logits, begin, row.logits.tokens), row.law);
  }
}

__device__ __forceinline__ float row_top_of(const Step& step, int64_t i) {
  return step.thresholds == nullptr ? minus_infinity() : step.thresholds[i].x;
}

template <class T, bool kFull>
__global__ void __launch_bounds__(kThreads, kFull || sizeof(T) == 4 ? 2 : kGroupBlocks)
    group_kernel(const __grid_constant__ Step step) {
  const int64_t spans = (step.groups + step.groups_of_warp - 1) / step.groups_of_warp;
  for (int64_t item = warp_of_grid(); item < step.tile.rows * spans; item += warps_of_grid()) {
    const int64_t i = item / spans, first = item % spans * step.groups_of_warp;
    const Place place = place_of(step.args, row_of(step.tile, i));
    if (early_of<T>(step.args, step.tile, i, place).settles) continue;
    const Row<T> row = row_at<T>(step, i, place);
    const float row_top = row_top_of(step, i);
    const int64_t last = min(first + step.groups_of_warp, step.groups);
    for (int64_t n = first; n < last; ++n) {
      const GroupRecord record = record_at<T, kFull>(row, static_cast<uint32_t>(n * kRaceGroup), row_top);
      if (threadIdx.x % kWarp == 0) step.work.groups[i * step.groups + n] = record;
    }
  }
}

template <class T>
__device__ __forceinline__ void note_logits(RowState& state, const GlauberArgs& args, const Place& place,
                                            const RowLogits<T>& logits) {
  if (args.noise_rate != nullptr) {
    const int64_t present = token_at(args, place.token_at);
    if (logits.holds(present)) state.present = logits.of(present);
  }
  if (mixes(args)) {
    const int64_t noise = decision_of(args, place).noise_token;
    if (logits.holds(noise)) state.noise = logits.of(noise);
  }
}

template <class T, bool kFull, bool kAlone>
__global__ void __launch_bounds__(kDrawThreads, kDrawBlocks)
    draw_kernel(const __grid_constant__ Step step) {
  const bool is_first_lane = threadIdx.x % kWarp == 0;
  for (int64_t i = warp_of_grid(); i < step.tile.rows; i += warps_of_grid()) {
    const int64_t row_id = row_of(step.tile, i);
    const Place place = place_of(step.args, row_id);
    const Early early = early_of<T>(step.args, step.tile, i, place);
    if (early.settles) {
      if (is_first_lane && step.work.is_last) note_early(step.args, row_id, early);
      continue;
    }
    const Row<T> row = row_at<T>(step, i, place);
    RowState state = step.work.is_first ? row_start() : step.work.states[i];
    note_logits(state, step.args, place, row.logits);
    if constexpr (kAlone) {
      race_alone(state, row, record_at<T, kFull>(row, 0, row_top_of(step, i)));
    } else {
      race_tile(state, row, step.work.groups + i * step.groups);
    }
    __syncwarp();  // all lanes have seen the token that stands there: shuffles order no memory
    if (!is_first_lane) continue;
    if (step.work.is_last) {
      settle_row(step.args, row_id, place, state, row.law);
    } else {
      step.work.states[i] = state;
    }
  }
}

unsigned grid_of_warps(int64_t warps, int threads) {
  const int64_t in_block = threads / kWarp;
  return static_cast<unsigned>(std::min<int64_t>((warps + in_block - 1) / in_block, INT32_MAX));
}

template <class T, bool kFull>
void launch(const Step& step, cudaStream_t queue) {
  const int64_t rows = step.tile.rows;
  const unsigned draw_grid = grid_of_warps(rows, kDrawThreads);
  if (step.args.vocab_size <= kRaceGroup) {
    start<draw_kernel<T, kFull, true>>({draw_grid, kDrawThreads, queue}, step);
    return;
  }
  const int64_t spans = (step.groups + step.groups_of_warp - 1) / step.groups_of_warp;
  start<group_kernel<T, kFull>>({grid_of_warps(rows * spans, kThreads), kThreads, queue}, step);
  start<draw_kernel<T, false, false>>({draw_grid, kDrawThreads, queue}, step);
}

// Whether the mass of the law that is drawn from is all that is needed of a group.
bool is_plain(const Step& step) {
  const RowOptions& options = step.args.options;
  const bool edits = options.softcap > 0.0f || options.logit_shift.values != nullptr || step.tile.bias != nullptr;
  const bool has_temperature = options.temperature.values != nullptr || step.args.inverse_temperature != 1.0f;
  return !edits && step.thresholds == nullptr && !step.wants.entropy && !step.wants.margin &&
         !(step.wants.raw_mass && has_temperature);
}

template <class T>
void launch(const Step& step, cudaStream_t queue) {
  if (is_plain(step)) {
    launch<T, false>(step, queue);
  } else {
    launch<T, true>(step, queue);
  }
}

int64_t groups_of_warp(int64_t rows, int64_t groups, int device) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return std::clamp<int64_t>(rows * groups / (processors * kWarpsPerProcessor), 1, kMostGroups);
}

}  // namespace

const char* glauber_race(const GlauberArgs& args, const LogitsTile& tile, const RaceWork& work,
                         const float* thresholds, void* stream, int device) {
  if (tile.rows == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const int64_t groups = (tile.tokens + kRaceGroup - 1) / kRaceGroup;
  const Step step = {args,           tile,   work, reinterpret_cast<const Threshold*>(thresholds),
                     wants_of(args), groups, groups_of_warp(tile.rows, groups, device)};
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (tile.dtype) {
    case Float::bfloat16:
      launch<BFloat16>(step, queue);
      break;
    case Float::float16:
      launch<Float16>(step, queue);
      break;
    default:
      launch<float>(step, queue);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
