// Limits and sizes of selection: the same on every SIMD target.
#pragma once

#include <cstddef>

#include "riffle/types.h"

namespace riffle::select {

// Room for this many elements follows each array that is loaded or stored by whole vectors: four
// vectors of 2-byte elements.
inline constexpr size_t kSlack = 128;

// At most this many candidates are sorted by rank.
inline constexpr size_t kRankLimit = 256;

// How many candidates may be sorted to get the k best. Ranking 64 candidates to get one takes twice
// as long as pruning them first; ranking 32 takes no longer. A large answer that need not be sorted
// is pruned to exactly k instead.
constexpr size_t SortLimit(size_t k, bool sorted) {
  if (k < 56) {
    return k < 10 ? 32 : 2 * k + k / 2 + 8;
  }
  return sorted || k < 256 ? k + k / 2 + 64 : k;
}

// Bytes that the radix sort moves for each candidate: its key and its index.
constexpr size_t PairBytes(DType dtype) { return SizeOf(dtype) == 8 ? 16 : 8; }

}  // namespace riffle::select
