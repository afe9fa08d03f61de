// A function on a stack of its own, left and entered again where it was left. Sanitizers are told of every change of
// stacks: this file and fiber.cpp are compiled without them, for their instrumentation cannot see one.
#pragma once

#include <cstddef>

namespace emulated {

class Fiber {
 public:
  using Entry = void (*)();

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // To begin with `entry` when it is next resumed. `entry` must end in leave(true).
  void prepare(Entry entry);
  // From the host to the fiber, until it leaves.
  void resume();
  // From the fiber to the host. One that ends must be prepared before it is resumed again.
  void leave(bool ends);
  // Whether an address is on its stack.
  bool holds(const void* at) const;

  // Under ThreadSanitizer: the thread as which this fiber is seen.
  void* identity = nullptr;

 private:
  char* stack_;
  void* place_ = nullptr;       // stack pointer, or context, while it is not running
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

// What ThreadSanitizer is told; nothing in other builds.
void* new_identity();
// What came before an ordering release at an address comes before what follows an acquire there.
void release_at(void* address);
void acquire_at(void* address);

}  // namespace emulated
