// Runs a grid of a kernel on the CPU. A thread of a block is a fiber, a barrier a rendezvous of all of them, a warp
// operation one of the lanes that its mask names. What CUDA leaves undefined at such a meeting (a barrier that some
// threads do not reach, lanes of a mask in different operations) is a std::runtime_error that names kernel, block,
// threads and lines.
//
// One block runs at a time, and within it one thread until its next rendezvous; the order of both is a setting.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulated {

// How grids run. The environment gives the first values: GGM_EMULATED_ORDER, GGM_EMULATED_LARGEST_GRID and
// GGM_EMULATED_PROCESSORS.
struct Settings {
  uint64_t order = 0;         // of blocks, and of the threads of one: 0 ascending, 1 descending, else a random one's seed
  unsigned largest_grid = 0;  // blocks that a grid is cut to, 0 for none: kernels loop over the grid
  int processors = 4;         // that the device seems to have
};
Settings& settings();

// What the launches of a kernel did, all threads together.
struct Counts {
  uint64_t launches = 0, blocks = 0, threads = 0, barriers = 0, warp_operations = 0, atomics = 0;
  uint64_t logarithms = 0, exponentials = 0;
  uint64_t votes = 0, votes_won = 0;  // of warps, by __any_sync
  // Of global memory, where the build counts accesses: as lanes ask for them, and of how many different sectors of a
  // launch, added up over launches.
  uint64_t bytes_read = 0, bytes_written = 0, sectors_read = 0, sectors_written = 0;
};
// Of each kernel by its name.
std::map<std::string, Counts>& counts();
// In the kernel that is running. Not inline: device code is instrumented, and what it counts is no data of its own.
void count_logarithm();
void count_exponential();
void count_atomic();
void count_vote(bool is_won);
void count_access(const void* at, size_t bytes, bool writes);

struct Grid {
  unsigned blocks;
  int threads;
  const char* signature;  // of a function whose template argument the kernel is
};
void run_grid(const Grid& grid, void (*thread)(const void*), const void* arguments, size_t argument_bytes);

template <auto kKernel, class... Arguments>
void run(unsigned blocks, int threads, const char* signature, const Arguments&... arguments) {
  const auto thread = [=] { kKernel(arguments...); };
  using Thread = decltype(thread);
  run_grid({blocks, threads, signature}, [](const void* self) { (*static_cast<Thread*>(self))(); }, &thread,
           sizeof thread);
}

// Where in the source a rendezvous is.
struct Place {
  const char* file;
  int line;
};

void barrier(Place place);

enum class WarpOperation { shuffle, shuffle_up, shuffle_down, shuffle_xor, any, all, ballot, sync };

// The values that the lanes of a mask brought to an operation, until the next one of the warp.
struct Lanes {
  const uint64_t* values;
  unsigned mask;
  int lane;  // the one that asks

  uint64_t of(int lane) const;  // an error where the mask does not have it
};
Lanes meet(WarpOperation operation, unsigned mask, uint64_t value, Place place);

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t), "registers of a warp hold 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulated
