#include "emulated/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(GGM_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(GGM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace emulated {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;  // address space: memory is taken page by page as it is used
constexpr size_t kGuardBytes = 4096;

#if defined(__x86_64__)

// Registers that a function must preserve, on the stack that is left and from the one that is entered.
extern "C" void ggm_emulated_switch(void** left, void* entered);
asm(R"(
.text
.hidden ggm_emulated_switch
.globl ggm_emulated_switch
.type ggm_emulated_switch, @function
ggm_emulated_switch:
  endbr64
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret
.size ggm_emulated_switch, .-ggm_emulated_switch
)");
constexpr int kSavedRegisters = 6;

void* host_place = nullptr;

void* prepared(char* stack, Fiber::Entry entry) {
  // As if it had been left at its beginning: aligned as after a call, whose return address is nothing.
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  return top;
}

void enter(void*& place) { ggm_emulated_switch(&host_place, place); }
void go_back(void*& place) { ggm_emulated_switch(&place, host_place); }

#else  // slower: it asks the system for the signal mask each time

ucontext_t host_context;

void* prepared(char* stack, Fiber::Entry entry) {
  // At the end of the stack, which is given to the context without it.
  ucontext_t* context = reinterpret_cast<ucontext_t*>(stack + kStackBytes - 4096);
  getcontext(context);
  context->uc_stack.ss_sp = stack + kGuardBytes;
  context->uc_stack.ss_size = kStackBytes - 4096 - kGuardBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void enter(void*& place) { swapcontext(&host_context, static_cast<ucontext_t*>(place)); }
void go_back(void*& place) { swapcontext(static_cast<ucontext_t*>(place), &host_context); }

#endif

#if defined(GGM_ASAN)
const void* host_stack = nullptr;
size_t host_stack_bytes = 0;
#endif
#if defined(GGM_TSAN)
void* host_identity = nullptr;
#endif
Fiber::Entry first_function;

// Where every fiber begins.
void begin() {
#if defined(GGM_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_bytes);
#endif
  first_function();
}

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  stack_ = static_cast<char*>(memory);
}

Fiber::~Fiber() {
#if defined(GGM_ASAN)
  __asan_unpoison_memory_region(stack_, kStackBytes);  // what a fiber that was left midway has poisoned
#endif
  munmap(stack_, kStackBytes);
}

bool Fiber::holds(const void* at) const { return at >= stack_ && at < stack_ + kStackBytes; }

void Fiber::prepare(Entry entry) {
  first_function = entry;
  place_ = prepared(stack_, &begin);
}

void Fiber::resume() {
#if defined(GGM_ASAN)
  void* host_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&host_fake_stack, stack_, kStackBytes);
#endif
#if defined(GGM_TSAN)
  host_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(identity, 1);  // 1: the change itself orders nothing
#endif
  enter(place_);
#if defined(GGM_ASAN)
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave([[maybe_unused]] bool ends) {
#if defined(GGM_ASAN)
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack_, host_stack, host_stack_bytes);
#endif
#if defined(GGM_TSAN)
  __tsan_switch_to_fiber(host_identity, 1);
#endif
  go_back(place_);
#if defined(GGM_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, &host_stack, &host_stack_bytes);
#endif
}

#if defined(GGM_TSAN)
void* new_identity() { return __tsan_create_fiber(0); }
void release_at(void* address) { __tsan_release(address); }
void acquire_at(void* address) { __tsan_acquire(address); }
#else
void* new_identity() { return nullptr; }
void release_at(void*) {}
void acquire_at(void*) {}
#endif

}  // namespace emulated
