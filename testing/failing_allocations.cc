// Apart from the tests, so that the compiler does not see that delete is free() where new is not
// malloc(), and warn.
#include "testing/failing_allocations.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

thread_local int64_t left = -1;  // allocations before the one that fails; -1: none fails

void* Allocate(size_t bytes, size_t alignment) {
  if (left >= 0 && left-- == 0) return nullptr;
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

namespace riffle::testing {

void FailAllocation(int64_t which) { left = which; }

}  // namespace riffle::testing
