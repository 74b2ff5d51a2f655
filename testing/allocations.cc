// A source file of its own: a compiler that saw these operators beside a test's `new` and `delete`
// would warn that memory which does not come from malloc() is freed by free().
#include "testing/allocations.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
using riffle::test::Fail;
std::atomic<int64_t> allocations{0};
std::atomic<bool> failing{false};
std::atomic<int64_t> good_left{0};
std::atomic<int64_t> failures{0};
Fail how = Fail::kOnce;
thread_local bool made_it = false;  // whether this thread made the FailingAllocations in force

void* Allocate(size_t bytes, size_t alignment) {
  ++allocations;
  if (failing && (how != Fail::kOnceInThisThread || made_it)) {
    const int64_t left = good_left--;
    if (left == 0 || (left < 0 && how == Fail::kFromThenOn)) {
      ++failures;
      return nullptr;
    }
  }
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void* OrThrow(void* memory) { return memory != nullptr ? memory : throw std::bad_alloc(); }
}  // namespace

// The array forms of the standard library call these.
void* operator new(size_t bytes) { return OrThrow(Allocate(bytes, 16)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return OrThrow(Allocate(bytes, static_cast<size_t>(alignment)));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Allocate(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace riffle::test {

int64_t Allocations() { return allocations; }

FailingAllocations::FailingAllocations(int64_t good, Fail fail) {
  good_left = good;
  failures = 0;
  how = fail;
  made_it = true;
  failing = true;
}
FailingAllocations::~FailingAllocations() {
  failing = false;
  made_it = false;
}
int64_t FailingAllocations::failed() const { return failures; }

}  // namespace riffle::test
