// Lets one allocation of this thread fail: link failing_allocations.cc, which replaces the global
// operator new.
#pragma once

#include <cstdint>

namespace riffle::testing {

// From now on allocation number `which` of this thread fails, counted from 0; -1: none.
void FailAllocation(int64_t which);

}  // namespace riffle::testing
