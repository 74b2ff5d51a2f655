// Limits and scratch of the finish: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <cstddef>

#include "topk/topk_kernels.h"

namespace riffle {

// How many buckets the bound may let through before it is made tighter: each costs a look at its
// elements, each tightening a count over all maxima.
constexpr size_t BucketLimit(size_t k) { return k + k / 4 + 8; }

// How many candidates may be sorted to get k. An answer in any order is cut to size instead, when
// that is cheaper than sorting.
constexpr size_t SortLimit(size_t k, bool sorted) {
  return sorted || k < 256 ? k + k / 2 + 64 : k;
}

// Byte offsets into the scratch of one finish, each 64-byte aligned.
struct FinishLayout {
  size_t keys;     // [candidates + vector] of the dtype
  size_t indices;  // [candidates + vector] int32
  size_t ids;      // [buckets + vector] int32
  size_t ties;     // [k + vector] int32
  size_t pairs;    // [2 * sorted] uint64
  size_t maxima;   // [buckets + vector] of the dtype, for rows that one thread does alone
  size_t bytes;
};
FinishLayout PlanFinish(const RowTask& task);

}  // namespace riffle
