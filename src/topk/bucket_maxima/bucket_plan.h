// Limits and scratch of bucket maxima: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/scratch_layout.h"
#include "topk/row_scratch.h"
#include "topk/topk_args.h"

namespace riffle::topk {

// How many buckets the bound may let through before it is made tighter: each costs a look at its
// elements, each tightening a count over all maxima.
constexpr size_t BucketLimit(size_t k) { return k + k / 4 + 4; }

// How many maxima are reduced to one for a first bound: eight for each of the k are left.
constexpr size_t MaximaGroup(size_t buckets, size_t k) {
  const size_t group = buckets / (8 * k);
  return group < 16 ? group : 16;
}

// A sample of a row: `count` elements, kMinBucket in a row at 0, stride, 2 * stride, ...; of the k
// best of a row in random order fewer than `k` are expected among them, by four standard
// deviations. count = 0: no sample.
struct SamplePlan {
  size_t count;
  size_t stride;
  size_t k;
};
SamplePlan PlanSample(size_t n, size_t k);

// What a kernel needs for a row.
struct BucketScratch {
  RowScratch row;
  core::ScratchArray<uint8_t>
      maxima;  // [buckets + kSlack] keys, for rows that one thread does alone
  size_t bytes = 0;
};
BucketScratch PlanBucketScratch(const RowTask& task);

}  // namespace riffle::topk
