// Limits and scratch of the finish: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <cstddef>

#include "topk/topk_kernels.h"

namespace riffle::topk {

// How many buckets the bound may let through before it is made tighter: each costs a look at its
// elements, each tightening a count over all maxima.
constexpr size_t BucketLimit(size_t k) { return k + k / 4 + 4; }

// How many maxima are reduced to one for a first bound: eight for each of the k are left.
constexpr size_t MaximaGroup(size_t buckets, size_t k) {
  const size_t group = buckets / (8 * k);
  return group < 16 ? group : 16;
}

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

// Byte offsets into the scratch of one finish, each 64-byte aligned.
struct FinishLayout {
  size_t keys;     // [candidates + kSlack] keys
  size_t indices;  // [candidates + kSlack] int32
  size_t ids;      // [BucketLimit + kSlack] int32
  size_t ties;     // [k + kSlack] int32
  size_t pairs;    // [2 * sorted] of PairBytes
  size_t maxima;   // [buckets + kSlack] keys, for rows that one thread does alone
  size_t bytes;
};
constexpr size_t kSlack =
    128;  // four vectors of the shortest elements: whole-vector loads and stores

// A sample of a row: `count` elements, kMinBucket in a row at 0, stride, 2 * stride, ...; of the k
// best of a row in random order fewer than `k` are expected among them, by four standard
// deviations. count = 0: no sample.
struct SamplePlan {
  size_t count;
  size_t stride;
  size_t k;
};
SamplePlan PlanSample(size_t n, size_t k);

FinishLayout PlanFinish(const RowTask& task);

}  // namespace riffle::topk
