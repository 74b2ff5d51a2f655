// Counts the allocations of the whole program: linking allocation_counter.cc replaces operator new.
#pragma once

#include <cstdint>

namespace riffle::test {

int64_t Allocations();  // so far, by all threads

}  // namespace riffle::test
