// Counts the allocations of the whole program, and lets them fail: linking allocation_counter.cc
// replaces operator new.
#pragma once

#include <cstdint>

namespace riffle::test {

int64_t Allocations();  // so far, by all threads

// While it lives, allocations of all threads fail after the first `good`: the next one alone, or
// that and all that follow.
enum class Fail { kOnce, kFromThenOn };
class FailingAllocations {
 public:
  FailingAllocations(int64_t good, Fail fail);
  ~FailingAllocations();
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;

  int64_t failed() const;  // how many have
};

}  // namespace riffle::test
