// The compiled core: arguments and entry points of every op. Raw pointers and sizes, no torch.
#pragma once

#include <cstdint>

#include "numerics/corrupt.h"
#include "numerics/group_race.h"

namespace ggm {

// corrupt: tokens [batch, length] to noisy and is_signal of the same shape. All arrays contiguous.
struct CorruptArgs {
  const void* tokens;         // int32 or int64, by token_bytes
  int64_t token_bytes;        // 4 or 8
  const float* keep_prob;     // [batch] by its stride, or [batch, length] contiguous where keep_per_position
  bool keep_per_position;
  int64_t keep_row_stride;  // 0: one for all
  const uint8_t* frozen;      // [batch, length] or null
  const int64_t* sample_ids;  // [batch], or null for 0 .. batch - 1
  NoiseSource noise;
  void* noisy;                // as tokens
  uint8_t* is_signal;         // [batch, length]
  int64_t batch;
  int64_t length;
  int64_t token_bound;  // tokens are below it
  uint64_t seed;
  int64_t step;
  const int64_t* step_pointer;  // device memory that holds the step, or null (cuda only)
  uint32_t stream;
};

enum class Float : int { float32, bfloat16, float16 };

// sigmoid_bce: logits [rows, vocab_size], of which row n's candidates are read.
// linear_sigmoid_bce: hidden [rows, hidden_size] times weight [vocab_size, hidden_size], likewise.
// Rows of hidden and weight are contiguous and their strides count elements. Weights of candidates may be
// expanded: a stride may be 0.
struct SigmoidBceArgs {
  Float dtype;             // of hidden, weight, bias, logits and their gradients
  bool linear;             // linear_sigmoid_bce, else sigmoid_bce
  const void* hidden;      // logits for sigmoid_bce
  int64_t hidden_stride;
  const void* weight;      // linear only
  int64_t weight_stride;
  const void* bias;        // [vocab_size] or null
  const float* offset;     // [rows] or null
  const void* candidates;  // [rows, count] contiguous, int32 or int64, by candidate_bytes
  int64_t candidate_bytes;
  const float* signal_weight;
  int64_t signal_row_stride, signal_stride;
  const float* noise_weight;
  int64_t noise_row_stride, noise_stride;
  int64_t rows, count, vocab_size, hidden_size;
};

struct SigmoidBceGradients {
  const float* loss;        // gradient of the loss, [rows]
  const float* candidate_logits;  // as the forward left them, [rows, count]
  void* hidden;             // [rows, hidden_size] contiguous, or null: not needed
  void* weight;             // [vocab_size, hidden_size] contiguous and zero, or null
  void* bias;               // [vocab_size] zero, or null
  void* logits;             // sigmoid_bce: [rows, vocab_size] contiguous and zero
  // linear: what shared candidates add, or null. Those of tokens by place, [places, hidden_size] and [places].
  const float* shared_hidden;  // [rows, hidden_size]
  const float* shared_weight;
  const float* shared_bias;
  const int64_t* places;       // of the token of each candidate, [rows, count], -1 for none
};

// shared_sigmoid_bce: a tile of logits in float32, the product of rows and of candidates that all rows share, before
// bias and offset.
struct SharedTile {
  const float* logits;  // [rows, columns]
  int64_t row_stride;
  const float* bias;    // [columns] or null
  const float* offset;  // [rows] or null
  const float* weight;  // [columns]
  int64_t rows, columns;
};

struct SharedGradientTile {
  Float dtype;     // float32 on the CPU
  void* gradient;  // [rows, columns]; may be the logits
  int64_t row_stride;
};

// linear_cross_entropy: products of hidden and weight for `rows` rows and the tokens [token_begin, token_begin +
// tokens), without bias; rows are contiguous each. Of rows all arrays hold `rows` elements.
struct CrossEntropyTile {
  void* products;  // float32 or bfloat16; the gradient of the logits takes their place
  Float dtype;
  int64_t row_stride;
  int64_t rows, token_begin, tokens;
  const float* bias;  // of these tokens, or null
  float softcap;      // 0: none
  const int64_t* targets;  // a token outside the vocabulary is nobody's
  const float* logit_shift;      // or null
  const int64_t* shifted_token;  // likewise
};

// Of each row of a tile.
struct CrossEntropySums {
  float* top;            // largest logit, -inf where all are
  float* mass;           // of exp(logit - top); NaN where a logit is
  float* target_logit;   // written where the tile holds the target
};

// What the gradient of the logits is made of, for each row: softmax_scale softmax(logits) - target_scale [is target].
struct CrossEntropyScales {
  const float* top;       // of the whole row
  const float* log_mass;  // likewise
  const float* softmax_scale;
  const float* target_scale;
  float negligible;  // gradients that size need not be looked at (cpu only)
  float* bias;       // [tokens]: sums of the gradient over the rows are added, or null
};

// A value per row, where values is not null: strides count elements and may be 0.
template <class T>
struct RowValues {
  const T* values;
  int64_t sequence_stride, stride;
};

// What a step may be given row by row, or not at all, and by-products that few ask for.
struct RowOptions {
  RowValues<int64_t> seed, step;    // instead of the step's own
  RowValues<float> temperature;     // likewise
  RowValues<int64_t> top_k;
  RowValues<float> top_p, min_p;
  RowValues<float> logit_shift;     // added to the logit of the token that stands there
  RowValues<float> mixture;         // alpha
  float softcap;                 // 0: none
  bool top_p_first;              // before top_k
  const AliasRow* noise_table;   // of a mixture's noise, [token_bound]; null for uniform or a mask
  int64_t noise_mask;            // the only token that it draws, or -1
  int64_t token_bound;           // present tokens are below; 0: vocab_size
  float* raw_log_prob;           // by-products [batch, count], each or null
  float* entropy;
  float* margin;
  int64_t* argmax;
};

// glauber_step: rows are the batch * count pairs of a sequence and an updated position.
// Strides count elements. Those of logits may be 0 (expanded).
struct GlauberArgs {
  void* tokens;  // [batch, length], int32 or int64, by token_bytes; written
  int64_t token_bytes;
  int64_t token_row_stride, token_stride;
  const int64_t* positions;  // [batch, count], -1 for none, or [count] where position_row_stride is 0
  int64_t position_row_stride;
  const int64_t* sample_ids;     // [batch], or null for 0 .. batch - 1
  const uint8_t* frozen;         // [batch, length] contiguous, or null
  const float* noise_rate;       // [batch, count] by strides, or null: heat bath
  int64_t noise_row_stride, noise_stride;
  const float* noise_log_probs;  // [vocab_size], or null for uniform
  bool normalize;
  int64_t batch, length, count, vocab_size;
  uint64_t seed;
  int64_t step;
  const int64_t* step_pointer;  // device memory that holds the step, or null (cuda only)
  float temperature;
  float inverse_temperature;    // finite and normal; unused where `greedy`
  bool greedy;                  // temperature 0
  int64_t top_k;                // vocab_size or more: no filter
  double top_p;                 // 1: no filter
  float log_min_p;              // -inf: no filter
  float* log_sum_exp;           // by-products [batch, count], each or null
  float* log_prob;
  float* keep_prob;
  RowOptions options;
};

// Logits of tokens [token_begin, token_begin + tokens) in `rows` rows from row_begin on, or in the rows row_ids; row
// b * count + k is position k of sequence b. Row i of the tile is at (i / group) * group_stride +
// (i % group) * row_stride, its tokens contiguous.
struct LogitsTile {
  const void* logits;
  Float dtype;
  int64_t group, group_stride, row_stride;
  int64_t row_begin;
  const int64_t* row_ids;  // [rows] or null
  int64_t rows;
  int64_t token_begin, tokens;
  const void* bias;  // of these tokens, to be added, or null (cuda only)
};

// Of a group on a GPU, what its race needs: everything relative to its own largest logit.
struct GroupRecord {
  float top;            // largest logit; NaN where one is
  float law_mass;       // of exp(z), of what the filters leave
  float tempered_mass;  // before the filters
  float moment;         // of z exp(z), likewise
  float raw_mass;       // no temperature, no filter
  float second;         // second largest logit
};

// A race on the GPU, over tiles of the vocabulary in their order.
struct RaceWork {
  GroupRecord* groups;  // [rows, groups of the tile]; null where the vocabulary is one group
  RowState* states;     // [rows], between tiles; null where the tile holds the whole vocabulary
  bool is_first, is_last;
};

// What logits are the product of: hidden [batch * count, hidden_size] and weight [vocab_size, hidden_size], rows
// contiguous.
struct Factors {
  Float dtype;
  const void* hidden;
  int64_t hidden_stride;
  const void* weight;
  int64_t weight_stride;
  const void* bias;  // [vocab_size] or null
  int64_t hidden_size;
};

// Logits [rows, tokens] of a few rows: of the hidden states and the weight of `factors`, which has as many tokens; all of
// one type. Rows are contiguous, strides count elements.
struct SkinnyProduct {
  Factors factors;
  void* logits;
  int64_t logits_stride;
  int64_t rows, tokens;
};

// Totals [count, columns] and what is added to them, all float32: weights [count, terms] times rows [terms, columns].
// Rows of all three are contiguous, strides count elements.
struct WeightedSums {
  const float* weights;
  int64_t weight_stride;
  const float* rows;
  int64_t row_stride;
  float* totals;
  int64_t total_stride;
  int64_t count, terms, columns;
};

// A matrix by its strides, which count elements; null data: there is none.
template <class T>
struct Matrix {
  T* data;
  int64_t row_stride, stride;
};

// A number, or one for every row: [batch] by a stride that may be 0.
template <class T>
struct PerRow {
  T value;
  const T* values;  // or null
  int64_t stride;
};

// commit: all matrices are [batch, length].
struct CommitArgs {
  Matrix<void> tokens;  // int32 or int64, by token_bytes; written
  int64_t token_bytes;
  Matrix<const void> proposal;  // likewise
  int64_t proposal_bytes;
  Matrix<const void> score;
  Float dtype;  // of score
  Matrix<const uint8_t> eligible;  // or null data: all
  Matrix<uint8_t> accepted;        // or null data; written
  PerRow<int64_t> count;    // the largest 64-bit integer: no limit
  PerRow<float> threshold;  // -inf: none
  PerRow<float> budget;
  bool has_budget;
  bool noises_rest;
  NoiseSource noise;
  const int64_t* sample_ids;  // [batch], or null for 0 .. batch - 1
  int64_t batch;
  int64_t length;
  uint64_t seed;
  int64_t step;
  const int64_t* step_pointer;  // device memory that holds the step, or null (cuda only)
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

// False, and nothing written, where a count, threshold, budget, sample id or the step is out of range.
bool commit(const CommitArgs& args, int threads);

// scaled [vocab_size]: probabilities times vocab_size, overwritten; stacks [vocab_size]: memory to work in.
void alias_table(double* scaled, AliasRow* table, uint32_t* stacks, int64_t vocab_size);

// Loss [rows] and candidate logits [rows, count]; false where a candidate is out of range.
bool sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int threads);
// Bit-identical for any number of threads: every row of the weight's gradient is summed in order by one thread.
void sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads);

// The sums of a tile of logits.
void linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums);
// The gradient of the logits in their place; whether any is more than negligible, or NaN.
bool linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales);
// task(context, i) for every i below `count`, each by one thread: what a library computes there is computed alike
// whatever the number of threads.
void run_tasks(void (*task)(void*, int64_t), void* context, int64_t count, int threads);
// Adds the losses of a tile's candidates to sums [rows].
void shared_sigmoid_bce(const SharedTile& tile, double* sums, int threads);
// Gradients of a tile's logits, given the gradient of each row's loss [rows].
void shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient, const SharedGradientTile& out,
                                 int threads);

// Whether all values are in range and no position twice in a sequence. The calls below trust that.
bool glauber_check(const GlauberArgs& args);
// Whole steps of the rows of a tile that holds the whole vocabulary. The number of rows seen to have no law.
int64_t glauber_step(const GlauberArgs& args, const LogitsTile& tile, int threads);

// The same in parts. The rows that are not settled by their present token alone (kept or frozen), whose number is
// returned; the others are done with.
int64_t glauber_undecided(const GlauberArgs& args, const Factors& factors, int64_t* row_ids, int threads);
// Without filters: the states of a tile's rows go on from row_start() over tiles of any number, each of whole groups
// but for the last.
void glauber_race(const GlauberArgs& args, const LogitsTile& tile, RowState* states, int threads);
int64_t glauber_settle(const GlauberArgs& args, const int64_t* row_ids, const RowState* states, int64_t rows);

// False where nothing is done, for a library is the quicker one: the instruction set in use has no fused sums, or more
// than seven rows are not float32.
bool skinny_product(const SkinnyProduct& product, int threads);
// The same of weighted sums; false, too, where there are fewer totals than registers hold at once, which are 8 at most.
bool add_weighted_sums(const WeightedSums& sums, int threads);

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
const char* commit(const CommitArgs& args, void* stream, int device);
const char* sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, void* stream, int device);
// tokens: all rows * count candidates, sorted, those of one token in order; order: their indices. Both are needed
// where the gradient of weight or bias is. Where that of the logits is, tokens holds the flat index of the logit that
// each candidate names instead, -1 where it is out of range.
const char* sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients,
                                 const int64_t* tokens, const int64_t* order, void* stream, int device);
const char* shared_sigmoid_bce(const SharedTile& tile, double* sums, void* stream, int device);
const char* shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient,
                                        const SharedGradientTile& out, void* stream, int device);

const char* linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums, void* stream, int device);
const char* linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales, void* stream,
                                          int device);

// Filters: the largest logit and the least tempered logit that stays, -inf where all do, thresholds [rows, 2]. The
// tile holds the whole vocabulary.
const char* glauber_threshold(const GlauberArgs& args, const LogitsTile& tile, float* thresholds, void* stream,
                              int device);
// Races the groups of a tile, and after the last tile writes tokens and by-products of its rows. thresholds: of
// glauber_threshold where there are filters, else null. tile.token_begin is a multiple of kRaceGroup.
const char* glauber_race(const GlauberArgs& args, const LogitsTile& tile, const RaceWork& work,
                         const float* thresholds, void* stream, int device);

}  // namespace cuda

}  // namespace ggm
