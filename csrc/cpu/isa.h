// Every file of this folder but dispatch.cpp is compiled once per instruction set, in a namespace of its own.
#pragma once

#include "kernels.h"
#include "numerics/group_race.h"

#define GGM_DECLARE_ISA(name)                                                                                  \
  namespace ggm::cpu::name {                                                                                   \
  bool corrupt(const CorruptArgs& args, int threads);                                                          \
  void philox(const PhiloxArgs& args);                                                                         \
  bool commit(const CommitArgs& args, int threads);                                                            \
  void alias_table(double* scaled, AliasRow* table, uint32_t* stacks, int64_t vocab_size);                     \
  bool sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int threads);             \
  void sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads);    \
  void linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums);                       \
  bool linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales);          \
  void run_tasks(void (*task)(void*, int64_t), void* context, int64_t count, int threads);                     \
  void shared_sigmoid_bce(const SharedTile& tile, double* sums, int threads);                                  \
  void shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient,                          \
                                   const SharedGradientTile& out, int threads);                                \
  bool glauber_check(const GlauberArgs& args);                                                                 \
  int64_t glauber_step(const GlauberArgs& args, const LogitsTile& tile, int threads);                          \
  int64_t glauber_undecided(const GlauberArgs& args, const Factors& factors, int64_t* row_ids, int threads);   \
  void glauber_race(const GlauberArgs& args, const LogitsTile& tile, RowState* states, int threads);           \
  int64_t glauber_settle(const GlauberArgs& args, const int64_t* ids, const RowState* states, int64_t rows);   \
  bool skinny_product(const SkinnyProduct& product, int threads);                                              \
  bool add_weighted_sums(const WeightedSums& sums, int threads);                                               \
  }

GGM_DECLARE_ISA(v4)
GGM_DECLARE_ISA(v3)
GGM_DECLARE_ISA(v2)
GGM_DECLARE_ISA(plain)
