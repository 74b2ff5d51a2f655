// Counts the allocations of the whole program, and makes chosen ones fail. A program that links
// allocations.cc has its global operator new replaced; it is therefore not in the testing library.
#pragma once

#include <cstdint>

namespace riffle::test {

// How many allocations all threads have made so far.
int64_t Allocations();

enum class Fail {
  kOnce,              // one allocation of any thread
  kFromThenOn,        // that one and all that follow, of any thread
  kOnceInThisThread,  // one allocation of the thread that made the FailingAllocations
};

// While it lives, the first `good` allocations succeed and the next one fails. Allocations of other
// threads succeed and are not counted if `fail` is kOnceInThisThread. At most one lives at a time.
class FailingAllocations {
 public:
  FailingAllocations(int64_t good, Fail fail);
  ~FailingAllocations();
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;

  int64_t failed() const;  // how many allocations have failed
};

}  // namespace riffle::test
