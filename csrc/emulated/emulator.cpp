#include "emulated/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "emulated/fiber.h"
#include "emulated/sectors.h"
#include "emulated/shared_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {

namespace {

constexpr unsigned kMostThreads = 1024, kWarp = 32;

enum class State { ready, at_barrier, in_warp_operation, ended };

struct Thread {
  Fiber fiber;
  State state;
  Place place;              // of the rendezvous
  const uint64_t* counter;  // of those that are over, barriers or meetings
  uint64_t awaits;          // what it must reach
};

// Where the lanes of one mask meet, again and again. Values of two times in turn: a lane reads those of one while
// others bring theirs to the next.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  WarpOperation operation = WarpOperation::sync;
  Place place = {nullptr, 0};
  uint64_t times = 0;
  uint64_t values[2][kWarp] = {};
};

// What ThreadSanitizer orders threads by: an address for each block's barriers and each warp's, of which blocks far
// apart share one.
constexpr unsigned kAddresses = 1 << 16;
char block_addresses[kAddresses], warp_addresses[kAddresses], grid_begins, grid_ends;

// Of the kernel that is running.
Counts* counted;

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Meeting>> meetings[kMostThreads / kWarp];  // of each warp, by mask
  unsigned size = 0;  // threads of the block
  unsigned current = 0;
  unsigned arrived = 0, ended = 0;
  uint64_t barriers = 0;
  uint64_t blocks = 0;  // run so far, in all grids
  Place barrier = {nullptr, 0};
  void (*thread)(const void*) = nullptr;
  const void* arguments = nullptr;
  size_t argument_bytes = 0;
  bool is_running = false;  // a thread of a block
  Sectors read, written;
  std::string kernel, fault;
  uint64_t random = 0;
} machine;

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::strtoull(text, nullptr, 10);
}

char* block_address() { return &block_addresses[machine.blocks % kAddresses]; }
Thread& self() { return *machine.threads[machine.current]; }

uint64_t next_random() {
  uint64_t z = machine.random += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

void put_in_order(std::vector<unsigned>& ids) {
  for (unsigned i = 0; i < ids.size(); ++i) ids[i] = i;
  if (settings().order == 1) std::reverse(ids.begin(), ids.end());
  if (settings().order < 2) return;
  for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[next_random() % i]);
}

std::string name(Place place) {
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

// "threads 0-31 at the barrier threshold.cu:52, threads 32-63 ended"
std::string whereabouts() {
  const auto where = [](const Thread& thread) -> std::string {
    switch (thread.state) {
      case State::at_barrier:
        return "at the barrier " + name(thread.place);
      case State::in_warp_operation:
        return "in the warp operation " + name(thread.place);
      case State::ended:
        return "ended";
      default:
        return "running";
    }
  };
  std::string text;
  for (unsigned first = 0, last; first < machine.size; first = last + 1) {
    const std::string place = where(*machine.threads[first]);
    for (last = first; last + 1 < machine.size && where(*machine.threads[last + 1]) == place;) ++last;
    text += (text.empty() ? "threads " : ", ") + std::to_string(first);
    if (last > first) text += "-" + std::to_string(last);
    text += " " + place;
  }
  return text;
}

std::string described(const std::string& what) {
  return "emulated: " + what + ", in block " + std::to_string(blockIdx.x) + " of " + std::to_string(gridDim.x) + " of " +
         machine.kernel + ": " + whereabouts();
}

// From a thread: the grid ends here. Fibers that were left midway are given up.
[[noreturn]] void fail(const std::string& what) {
  machine.fault = described("thread " + std::to_string(machine.current) + ": " + what);
  self().fiber.leave(false);
  std::abort();  // nobody resumes it
}

// Until somebody completes the meeting.
void wait(State state, Place place, const uint64_t& counter) {
  Thread& thread = self();
  thread.state = state;
  thread.place = place;
  thread.counter = &counter;
  thread.awaits = counter + 1;
  thread.fiber.leave(false);
}

void run_thread() {
  acquire_at(&grid_begins);
  acquire_at(block_address());
  machine.thread(machine.arguments);
  release_at(&grid_ends);
  self().state = State::ended;
  ++machine.ended;
  if (machine.arrived != 0) fail("ends while others wait at the barrier " + name(machine.barrier));
  self().fiber.leave(true);
}

bool can_run(unsigned thread) {
  const Thread& it = *machine.threads[thread];
  return it.state == State::ready || (it.state != State::ended && *it.counter >= it.awaits);
}

void resume(unsigned thread) {
  const unsigned x = thread % blockDim.x;
  machine.current = thread;
  threadIdx = {x, 0, 0};
  machine.threads[thread]->state = State::ready;
  machine.is_running = true;
  machine.threads[thread]->fiber.resume();
  machine.is_running = false;
  if (!machine.fault.empty()) throw std::runtime_error(machine.fault);
}

void prepare_block() {
  machine.arrived = machine.ended = 0;
  for (auto& of_warp : machine.meetings) {
    for (auto& meeting : of_warp) meeting->arrived = 0;
  }
  while (machine.threads.size() < machine.size) {
    machine.threads.push_back(std::make_unique<Thread>());
    machine.threads.back()->fiber.identity = new_identity();  // for good: the stack goes with it
  }
  // Thread i of one block and of the next are no longer in order by being one.
  std::rotate(machine.threads.begin(), machine.threads.begin() + 1, machine.threads.begin() + machine.size);
  for (unsigned i = 0; i < machine.size; ++i) {
    machine.threads[i]->state = State::ready;
    machine.threads[i]->fiber.prepare(&run_thread);
  }
  spoil_shared_memory();
  release_at(block_address());
}

void run_block(std::vector<unsigned>& ids) {
  prepare_block();
  while (machine.ended < machine.size) {
    put_in_order(ids);
    bool moved = false;
    for (const unsigned thread : ids) {
      while (can_run(thread)) {
        moved = true;
        resume(thread);
      }
    }
    if (!moved) throw std::runtime_error(described("deadlock"));
  }
  ++machine.blocks;
  ++counted->blocks;
  counted->threads += machine.size;
}

// "void ggm::cuda::start(..) [with auto kKernel = ggm::cuda::{anonymous}::race_kernel<..>; ..]" of gcc, or
// "[kKernel = &ggm::cuda::(anonymous namespace)::race_kernel<..>, ..]" of clang.
std::string kernel_name(const std::string& signature) {
  const std::string mark = "kKernel = ";
  const size_t begin = signature.find(mark);
  if (begin == std::string::npos) return signature;
  size_t end = begin + mark.size();
  for (int depth = 0; end < signature.size(); ++end) {
    const char c = signature[end];
    depth += c == '<' || c == '{' || c == '(' ? 1 : c == '>' || c == '}' || c == ')' ? -1 : 0;
    if (depth < 0 || (depth == 0 && (c == ';' || c == ',' || c == ']'))) break;
  }
  std::string found = signature.substr(begin + mark.size(), end - begin - mark.size());
  for (const std::string noise : {"&", "ggm::cuda::", "ggm::", "{anonymous}::", "(anonymous namespace)::"}) {
    for (size_t at; (at = found.find(noise)) != std::string::npos;) found.erase(at, noise.size());
  }
  return found;
}

void check(const Grid& grid) {
  const int threads = grid.threads;
  if (grid.blocks == 0 || grid.blocks > 0x7FFFFFFFu || threads < 1 || threads > static_cast<int>(kMostThreads)) {
    throw std::runtime_error("emulated: " + machine.kernel + " was started with " + std::to_string(grid.blocks) +
                             " blocks of " + std::to_string(threads) + " threads");
  }
}

// Where the lanes of a mask meet. A lane of it that waits elsewhere, with a mask that overlaps, will not come.
Meeting& meeting_of(unsigned mask, Place place) {
  auto& of_warp = machine.meetings[machine.current / kWarp];
  Meeting* found = nullptr;
  for (const auto& meeting : of_warp) {
    if (meeting->mask == mask) {
      found = meeting.get();
    } else if (meeting->arrived != 0 && (meeting->mask & mask) != 0) {
      fail("in the warp operation " + name(place) + " names lanes that wait with another mask in that of " +
           name(meeting->place));
    }
  }
  if (found != nullptr) return *found;
  of_warp.push_back(std::make_unique<Meeting>());
  of_warp.back()->mask = mask;
  return *of_warp.back();
}

}  // namespace

void count_logarithm() { ++counted->logarithms; }
void count_exponential() { ++counted->exponentials; }
void count_atomic() { ++counted->atomics; }
void count_vote(bool is_won) { ++counted->votes, counted->votes_won += is_won; }

// What is no register, parameter, variable of the module or shared memory is global.
void count_access(const void* at, size_t bytes, bool writes) {
  if (!machine.is_running || self().fiber.holds(at) || is_of_module(at)) return;
  const char* const arguments = static_cast<const char*>(machine.arguments);
  if (at >= arguments && at < arguments + machine.argument_bytes) return;
  (writes ? counted->bytes_written : counted->bytes_read) += bytes;
  (writes ? machine.written : machine.read).note(at, bytes);
}

Settings& settings() {
  static Settings settings = {environment("GGM_EMULATED_ORDER", 0),
                              static_cast<unsigned>(environment("GGM_EMULATED_LARGEST_GRID", 0)),
                              static_cast<int>(environment("GGM_EMULATED_PROCESSORS", 4))};
  return settings;
}

std::map<std::string, Counts>& counts() {
  static std::map<std::string, Counts> of_kernels;
  return of_kernels;
}

void run_grid(const Grid& grid, void (*thread)(const void*), const void* arguments, size_t argument_bytes) {
  machine.kernel = kernel_name(grid.signature);
  check(grid);
  counted = &counts()[machine.kernel];
  ++counted->launches;
  const unsigned most = settings().largest_grid;
  gridDim = {most == 0 ? grid.blocks : std::min(grid.blocks, most), 1, 1};
  blockDim = {static_cast<unsigned>(grid.threads), 1, 1};
  machine.size = blockDim.x;
  machine.thread = thread;
  machine.arguments = arguments;
  machine.argument_bytes = argument_bytes;
  machine.random = settings().order;
  std::vector<unsigned> blocks(gridDim.x), threads(machine.size);
  put_in_order(blocks);
  release_at(&grid_begins);
  try {
    for (const unsigned block : blocks) {
      blockIdx = {block, 0, 0};
      run_block(threads);
    }
  } catch (...) {
    machine.threads.clear();  // midway on their stacks
    machine.is_running = false;
    machine.fault.clear();
    throw;
  }
  acquire_at(&grid_ends);
  counted->sectors_read += machine.read.take();
  counted->sectors_written += machine.written.take();
}

void barrier(Place place) {
  release_at(block_address());
  if (machine.ended != 0) fail("reaches the barrier " + name(place) + " after others have ended");
  if (machine.arrived == 0) machine.barrier = place;
  if (place.line != machine.barrier.line || strcmp(place.file, machine.barrier.file) != 0) {
    fail("reaches the barrier " + name(place) + " while others wait at " + name(machine.barrier));
  }
  if (++machine.arrived == machine.size) {
    machine.arrived = 0;
    ++machine.barriers;
    ++counted->barriers;
  } else {
    wait(State::at_barrier, place, machine.barriers);
  }
  acquire_at(block_address());
}

Lanes meet(WarpOperation operation, unsigned mask, uint64_t value, Place place) {
  const int lane = static_cast<int>(machine.current % kWarp);
  // Lanes of a sync see what the others wrote before it; the other operations promise nothing of memory.
  const bool orders = operation == WarpOperation::sync;
  char* address = &warp_addresses[(machine.blocks * (kMostThreads / kWarp) + machine.current / kWarp) % kAddresses];
  if (orders) release_at(address);
  if ((mask >> lane & 1u) == 0) fail("is no lane of the mask of its warp operation " + name(place));
  Meeting& meeting = meeting_of(mask, place);
  if (meeting.arrived == 0) {
    meeting.operation = operation;
    meeting.place = place;
  }
  if (meeting.operation != operation || meeting.place.line != place.line) {
    fail("in the warp operation " + name(place) + " meets lanes in that of " + name(meeting.place));
  }
  const uint64_t* values = meeting.values[meeting.times % 2];
  meeting.values[meeting.times % 2][lane] = value;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.times;
    ++counted->warp_operations;
  } else {
    wait(State::in_warp_operation, place, meeting.times);
  }
  if (orders) acquire_at(address);
  return {values, mask, lane};
}

uint64_t Lanes::of(int other) const {
  if (other < 0 || other >= static_cast<int>(kWarp) || (mask >> other & 1u) == 0) {
    fail("asks a lane for its value that the mask does not have: " + std::to_string(other));
  }
  return values[other];
}

}  // namespace emulated
