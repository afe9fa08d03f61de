// Loops shared out among the threads of libgomp, the OpenMP runtime that PyTorch has loaded. It is called by the names
// that compilers call it by: `#pragma omp` brings the compiler's own runtime, and with clang that is another one, libomp,
// whose threads would stand beside those of PyTorch.
#pragma once

#include <cstdint>

#include "numerics/host_device.h"

#if defined(GGM_WITH_GOMP)
extern "C" {
void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}
#endif

namespace ggm::cpu::GGM_ISA {
namespace {

// One thread of a team, and its part of the one loop that the team runs.
struct Member {
  int64_t* next;  // of the team: the first index that nobody has taken
  int64_t thread, threads;

  // Equal parts, known beforehand.
  template <class Body>
  void in_parts(int64_t size, const Body& body) const {
    const int64_t part = size / threads, longer = size % threads;
    const int64_t begin = thread * part + (thread < longer ? thread : longer);
    const int64_t end = begin + part + (thread < longer ? 1 : 0);
    for (int64_t i = begin; i < end; ++i) body(i);
  }

  // `chunk` at a time by whoever is free: where some take longer than others, or a thread is slow to wake.
  template <class Body>
  void as_free(int64_t size, int64_t chunk, const Body& body) const {
    for (;;) {
      const int64_t begin = __atomic_fetch_add(next, chunk, __ATOMIC_RELAXED);
      const int64_t end = begin + chunk < size ? begin + chunk : size;
      if (begin >= size) return;
      for (int64_t i = begin; i < end; ++i) body(i);
    }
  }
};

template <class Work>
struct Team {
  const Work* work;
  int64_t next;
};

#if defined(GGM_WITH_GOMP)
template <class Work>
void run_member(void* data) {
  Team<Work>* team = static_cast<Team<Work>*>(data);
  (*team->work)(Member{&team->next, omp_get_thread_num(), omp_get_num_threads()});
}
#endif

// work(member) on each of `threads` threads, or on this one alone where that is not worth while.
template <class Work>
void on_threads(int threads, bool worth_while, const Work& work) {
  Team<Work> team = {&work, 0};
#if defined(GGM_WITH_GOMP)
  if (worth_while && threads > 1) return GOMP_parallel(run_member<Work>, &team, static_cast<unsigned>(threads), 0);
#endif
  (void)threads;
  (void)worth_while;
  work(Member{&team.next, 0, 1});
}

// body(i) for every i below `size`, in equal parts.
template <class Body>
void for_each(int64_t size, int threads, bool worth_while, const Body& body) {
  on_threads(threads, worth_while, [&](const Member& member) { member.in_parts(size, body); });
}

// What several threads find together: true until one of them finds otherwise.
GGM_HD void refute(bool& valid) { __atomic_store_n(&valid, false, __ATOMIC_RELAXED); }

}  // namespace
}  // namespace ggm::cpu::GGM_ISA
