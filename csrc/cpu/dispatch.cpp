// Chooses, at run time, among the instruction sets that the other files of this folder were compiled for.
#include <cstring>

#include "cpu/isa.h"

namespace ggm::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*supported)();
  bool (*corrupt)(const CorruptArgs&, int);
  void (*philox)(const PhiloxArgs&);
  bool (*commit)(const CommitArgs&, int);
  void (*alias_table)(double*, AliasRow*, uint32_t*, int64_t);
  bool (*sigmoid_bce)(const SigmoidBceArgs&, float*, float*, int);
  void (*sigmoid_bce_backward)(const SigmoidBceArgs&, const SigmoidBceGradients&, int);
  void (*linear_cross_entropy)(const CrossEntropyTile&, const CrossEntropySums&);
  bool (*linear_cross_entropy_backward)(const CrossEntropyTile&, const CrossEntropyScales&);
  void (*run_tasks)(void (*)(void*, int64_t), void*, int64_t, int);
  void (*shared_sigmoid_bce)(const SharedTile&, double*, int);
  void (*shared_sigmoid_bce_backward)(const SharedTile&, const float*, const SharedGradientTile&, int);
  bool (*glauber_check)(const GlauberArgs&);
  int64_t (*glauber_step)(const GlauberArgs&, const LogitsTile&, int);
  int64_t (*glauber_undecided)(const GlauberArgs&, const Factors&, int64_t*, int);
  void (*glauber_race)(const GlauberArgs&, const LogitsTile&, RowState*, int);
  int64_t (*glauber_settle)(const GlauberArgs&, const int64_t*, const RowState*, int64_t);
  bool (*skinny_product)(const SkinnyProduct&, int);
  bool (*add_weighted_sums)(const WeightedSums&, int);
};

#define GGM_ISA_ENTRY(name, supported) \
  {#name, supported, name::corrupt, name::philox, name::commit, name::alias_table, name::sigmoid_bce,             \
   name::sigmoid_bce_backward, name::linear_cross_entropy, name::linear_cross_entropy_backward, name::run_tasks, \
   name::shared_sigmoid_bce, name::shared_sigmoid_bce_backward, name::glauber_check, name::glauber_step,          \
   name::glauber_undecided, name::glauber_race, name::glauber_settle, name::skinny_product,                      \
   name::add_weighted_sums}

#if defined(__x86_64__)
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
bool has_v2() { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }
#endif

const Isa kBuilt[] = {
#if defined(GGM_HAVE_ISA_v4)
    GGM_ISA_ENTRY(v4, has_v4),
#endif
#if defined(GGM_HAVE_ISA_v3)
    GGM_ISA_ENTRY(v3, has_v3),
#endif
#if defined(GGM_HAVE_ISA_v2)
    GGM_ISA_ENTRY(v2, has_v2),
#endif
#if defined(GGM_HAVE_ISA_plain)
    GGM_ISA_ENTRY(plain, [] { return true; }),
#endif
};


const Isa* nth_supported(int index) {
  for (const Isa& isa : kBuilt) {
    if (isa.supported() && index-- == 0) return &isa;
  }
  return nullptr;
}

const Isa* in_use = nth_supported(0);

}  // namespace

bool corrupt(const CorruptArgs& args, int threads) { return in_use->corrupt(args, threads); }
void philox(const PhiloxArgs& args) { in_use->philox(args); }
bool commit(const CommitArgs& args, int threads) { return in_use->commit(args, threads); }
void alias_table(double* scaled, AliasRow* table, uint32_t* stacks, int64_t vocab_size) {
  in_use->alias_table(scaled, table, stacks, vocab_size);
}
bool sigmoid_bce(const SigmoidBceArgs& args, float* loss, float* candidate_logits, int threads) {
  return in_use->sigmoid_bce(args, loss, candidate_logits, threads);
}
void sigmoid_bce_backward(const SigmoidBceArgs& args, const SigmoidBceGradients& gradients, int threads) {
  in_use->sigmoid_bce_backward(args, gradients, threads);
}

void linear_cross_entropy(const CrossEntropyTile& tile, const CrossEntropySums& sums) {
  in_use->linear_cross_entropy(tile, sums);
}
bool linear_cross_entropy_backward(const CrossEntropyTile& tile, const CrossEntropyScales& scales) {
  return in_use->linear_cross_entropy_backward(tile, scales);
}
void run_tasks(void (*task)(void*, int64_t), void* context, int64_t count, int threads) {
  in_use->run_tasks(task, context, count, threads);
}

void shared_sigmoid_bce(const SharedTile& tile, double* sums, int threads) {
  in_use->shared_sigmoid_bce(tile, sums, threads);
}
void shared_sigmoid_bce_backward(const SharedTile& tile, const float* row_gradient, const SharedGradientTile& out,
                                 int threads) {
  in_use->shared_sigmoid_bce_backward(tile, row_gradient, out, threads);
}

bool glauber_check(const GlauberArgs& args) { return in_use->glauber_check(args); }
int64_t glauber_step(const GlauberArgs& args, const LogitsTile& tile, int threads) {
  return in_use->glauber_step(args, tile, threads);
}
int64_t glauber_undecided(const GlauberArgs& args, const Factors& factors, int64_t* row_ids, int threads) {
  return in_use->glauber_undecided(args, factors, row_ids, threads);
}
void glauber_race(const GlauberArgs& args, const LogitsTile& tile, RowState* states, int threads) {
  in_use->glauber_race(args, tile, states, threads);
}
int64_t glauber_settle(const GlauberArgs& args, const int64_t* row_ids, const RowState* states, int64_t rows) {
  return in_use->glauber_settle(args, row_ids, states, rows);
}

bool skinny_product(const SkinnyProduct& product, int threads) { return in_use->skinny_product(product, threads); }
bool add_weighted_sums(const WeightedSums& sums, int threads) { return in_use->add_weighted_sums(sums, threads); }

int isa_count() {
  int count = 0;
  while (nth_supported(count) != nullptr) ++count;
  return count;
}

const char* isa_name(int index) { return nth_supported(index)->name; }

const char* isa() { return in_use == nullptr ? nullptr : in_use->name; }

bool select_isa(const char* name) {
  for (const Isa& isa : kBuilt) {
    if (std::strcmp(isa.name, name) == 0 && isa.supported()) {
      in_use = &isa;
      return true;
    }
  }
  return false;
}

}  // namespace ggm::cpu
