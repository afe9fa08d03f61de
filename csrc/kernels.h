// The compiled core: arguments and entry points of every op. Raw pointers and sizes, no torch.
#pragma once

#include <cstdint>

#include "numerics/corrupt.h"

namespace ggm {

// corrupt: tokens [batch, length] to noisy and is_signal of the same shape. All arrays contiguous.
struct CorruptArgs {
  const void* tokens;         // int32 or int64, by token_bytes
  int64_t token_bytes;        // 4 or 8
  const float* keep_prob;     // [batch], or [batch, length] where keep_per_position
  bool keep_per_position;
  const uint8_t* frozen;      // [batch, length] or null
  const int64_t* sample_ids;  // [batch], or null for 0 .. batch - 1
  const AliasRow* noise;      // [vocab_size], or null for uniform
  void* noisy;                // as tokens
  uint8_t* is_signal;         // [batch, length]
  int64_t batch;
  int64_t length;
  int64_t vocab_size;
  uint64_t seed;
  int64_t step;
  const int64_t* step_pointer;  // device memory that holds the step, or null (cuda only)
  uint32_t stream;
};

// philox: n counters [n, 4] to n blocks of words [n, 4], for known-answer tests.
struct PhiloxArgs {
  const uint32_t* counters;
  uint32_t* words;
  int64_t count;
  uint64_t seed;
};

namespace cpu {

// False, with the outputs unspecified, where a token, keep probability, sample id or step is out of range.
bool corrupt(const CorruptArgs& args, int threads);
void philox(const PhiloxArgs& args);

// Instruction sets that were built and that this processor has, best first; the one in use.
int isa_count();
const char* isa_name(int index);
const char* isa();
bool select_isa(const char* name);

}  // namespace cpu

namespace cuda {

// Launch on `stream` of `device`; null, or what CUDA said went wrong.
const char* corrupt(const CorruptArgs& args, void* stream, int device);
const char* philox(const PhiloxArgs& args, void* stream, int device);

}  // namespace cuda

}  // namespace ggm
