// The canonical order of the rows that a query names.
#pragma once

#include <cstdint>
#include <span>

namespace riffle::sparse {

// Writes the slots in 0..limit - 1 to `to` in ascending order; returns how many. `to` and `other`
// have room for all of `slots`, which may change meanwhile.
int64_t SortSlots(std::span<const int32_t> slots, int64_t limit, int32_t* to, int32_t* other);

}  // namespace riffle::sparse
