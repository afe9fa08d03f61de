// One thread takes the two positions that share a Philox call. Bytes moved per position: token in, token
// out, one bool; the ten rounds hide behind them.
#include "cuda/launch.h"
#include "kernels.h"
#include "numerics/corrupt.h"
#include "numerics/counter.h"
#include "numerics/philox.h"

namespace ggm::cuda {
namespace {

template <class Token>
struct alignas(2 * sizeof(Token)) Pair {
  Token first, second;
};


__device__ __forceinline__ uint32_t acceptance_word(const CorruptArgs& args, uint32_t step, uint64_t sample_id,
                                                    uint32_t position) {
  const PhiloxBlock<uint32_t> block =
      philox4x32(counter_word0(args.stream, sample_id, kAcceptanceBlock), position / 4, counter_word2(sample_id), step,
                 philox_keys(args.seed));
  const uint32_t word = position % 4;
  return word == 0 ? block.w0 : word == 1 ? block.w1 : word == 2 ? block.w2 : block.w3;
}

template <class Token>
__device__ __forceinline__ Token corrupt_one(const CorruptArgs& args, int64_t row, uint32_t position, uint32_t step,
                                             uint64_t sample_id, uint32_t decide, uint32_t draw, Token token,
                                             bool& is_signal) {
  const int64_t at = row * args.length + position;
  is_signal = keeps(decide, kept_words(args.keep_prob[args.keep_per_position ? at : row * args.keep_row_stride])) != 0;
  if (args.frozen != nullptr) is_signal |= args.frozen[at] != 0;
  uint32_t noise = args.noise.mask_id >= 0 ? static_cast<uint32_t>(args.noise.mask_id)
                                           : uniform_token(draw, static_cast<uint32_t>(args.noise.vocab_size));
  if (args.noise.table != nullptr && !is_signal) {
    noise = alias_token(noise, acceptance_word(args, step, sample_id, position), args.noise.table[noise]);
  }
  return is_signal ? token : static_cast<Token>(noise);
}

// Index: uint32_t where the number of pairs allows it, for a fast division. kPaired: both tokens of a pair
// are there and aligned, so they move as one access.
template <class Token, class Index, bool kPaired>
__global__ void __launch_bounds__(kThreads) corrupt_kernel(CorruptArgs args, Index pairs_per_row, Index pairs) {
  const uint32_t step = static_cast<uint32_t>(args.step_pointer == nullptr ? args.step : *args.step_pointer);
  const Token* tokens = static_cast<const Token*>(args.tokens);
  Token* noisy = static_cast<Token*>(args.noisy);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < static_cast<int64_t>(pairs); i += stride) {
    const Index row = static_cast<Index>(i) / pairs_per_row;
    const uint32_t pair = static_cast<uint32_t>(static_cast<Index>(i) - row * pairs_per_row);
    const uint32_t position = 2 * pair;
    const int64_t at = static_cast<int64_t>(row) * args.length + position;
    const bool has_second = kPaired || position + 1 < args.length;
    const uint64_t sample_id = static_cast<uint64_t>(args.sample_ids == nullptr ? row : args.sample_ids[row]);

    Pair<Token> in;
    if constexpr (kPaired) {
      in = *reinterpret_cast<const Pair<Token>*>(tokens + at);
    } else {
      in = {tokens[at], has_second ? tokens[at + 1] : Token{0}};
    }
    const PhiloxBlock<uint32_t> block = philox4x32(counter_word0(args.stream, sample_id, kTokenBlock), pair,
                                                   counter_word2(sample_id), step, philox_keys(args.seed));
    bool keep_first = false, keep_second = false;
    Pair<Token> out;
    out.first = corrupt_one(args, row, position, step, sample_id, block.w0, block.w1, in.first, keep_first);
    out.second = in.second;
    if (has_second) {
      out.second = corrupt_one(args, row, position + 1, step, sample_id, block.w2, block.w3, in.second, keep_second);
    }
    if constexpr (kPaired) {
      *reinterpret_cast<Pair<Token>*>(noisy + at) = out;
      *reinterpret_cast<uchar2*>(args.is_signal + at) = make_uchar2(keep_first, keep_second);
    } else {
      noisy[at] = out.first;
      args.is_signal[at] = keep_first;
      if (has_second) {
        noisy[at + 1] = out.second;
        args.is_signal[at + 1] = keep_second;
      }
    }
  }
}

template <class Token>
bool moves_in_pairs(const CorruptArgs& args) {
  const auto aligned = [](const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
  return args.length % 2 == 0 && aligned(args.tokens, sizeof(Pair<Token>)) && aligned(args.noisy, sizeof(Pair<Token>)) &&
         aligned(args.is_signal, sizeof(uchar2));
}

template <class Token, class Index>
void launch(const CorruptArgs& args, int64_t pairs_per_row, int64_t pairs, unsigned grid, cudaStream_t stream) {
  const Index per_row = static_cast<Index>(pairs_per_row), all = static_cast<Index>(pairs);
  if (moves_in_pairs<Token>(args)) {
    start<corrupt_kernel<Token, Index, true>>({grid, kThreads, stream}, args, per_row, all);
  } else {
    start<corrupt_kernel<Token, Index, false>>({grid, kThreads, stream}, args, per_row, all);
  }
}

template <class Token>
void launch(const CorruptArgs& args, int device, cudaStream_t stream) {
  const int64_t pairs_per_row = (args.length + 1) / 2;
  const int64_t pairs = args.batch * pairs_per_row;
  const unsigned grid = grid_for(pairs, device);
  if (pairs < int64_t{1} << 32) {
    launch<Token, uint32_t>(args, pairs_per_row, pairs, grid, stream);
  } else {
    launch<Token, uint64_t>(args, pairs_per_row, pairs, grid, stream);
  }
}

}  // namespace

const char* corrupt(const CorruptArgs& args, void* stream, int device) {
  if (args.batch == 0 || args.length == 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return message(guard.error());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (args.token_bytes == 8) {
    launch<int64_t>(args, device, queue);
  } else {
    launch<int32_t>(args, device, queue);
  }
  return message(cudaGetLastError());
}

}  // namespace ggm::cuda
