// Limits and sizes of selection: the same on every SIMD target.
#pragma once

#include <cstddef>

#include "riffle/types.h"

namespace riffle::select {

// Arrays of candidates, and others that whole vectors are loaded from or stored to, are followed by
// room for this many elements: four vectors of the shortest.
inline constexpr size_t kSlack = 128;

// The most candidates that are sorted by rank.
inline constexpr size_t kRankLimit = 256;

// How many candidates may be sorted to get k: ranking 64 to get one takes twice as long as cutting
// them to size first, ranking 32 no longer. An answer in any order is cut to size always when that
// is cheaper than sorting.
constexpr size_t SortLimit(size_t k, bool sorted) {
  if (k < 56) {
    return k < 10 ? 32 : 2 * k + k / 2 + 8;
  }
  return sorted || k < 256 ? k + k / 2 + 64 : k;
}

// What the radix sort moves for each candidate: its key and index.
constexpr size_t PairBytes(DType dtype) { return SizeOf(dtype) == 8 ? 16 : 8; }

}  // namespace riffle::select
