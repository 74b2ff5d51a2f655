// Limits and scratch of bucket maxima: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/scratch_layout.h"
#include "topk/row_scratch.h"
#include "topk/topk_args.h"

namespace riffle::topk {

// How many buckets may reach the bound before it is tightened. Each bucket costs another look at
// its elements, each tightening another count over all maxima.
constexpr size_t BucketLimit(size_t k) { return k + k / 4 + 4; }

// How many bucket maxima are reduced to one for a first bound. At least 8 * k are left.
constexpr size_t MaximaPerGroup(size_t buckets, size_t k) {
  const size_t group = buckets / (8 * k);
  return group < 16 ? group : 16;
}

// Where a row's buckets are. They begin at cache lines, so that no vector of the first pass crosses
// a line, and a second look at a bucket touches no line of another one: with buckets 16 bytes past
// a line, where NumPy's arrays begin, the whole call took 1.3 times as long (docs/lab/top-k.md).
// Bucket 0 also has the elements before the first line; the last bucket may be empty. Statistics
// must not depend on an address, so if they are wanted the buckets begin with the row.
class BucketBounds {
 public:
  explicit BucketBounds(const RowTask& task)
      : n_(static_cast<size_t>(task.n)), size_(static_cast<size_t>(task.plan.size)) {
    const size_t element = SizeOf(task.dtype);
    const size_t past = reinterpret_cast<uintptr_t>(task.x) % kLine;
    if (task.stats == nullptr && past % element == 0) {
      lead_ = std::min(n_, (kLine - past) % kLine / element);
    }
  }

  size_t n() const { return n_; }
  size_t size() const { return size_; }
  size_t lead() const { return lead_; }  // elements before the first line
  size_t Begin(size_t bucket) const {
    return bucket == 0 ? 0 : std::min(n_, lead_ + bucket * size_);
  }
  size_t End(size_t bucket) const { return std::min(n_, lead_ + (bucket + 1) * size_); }

  static constexpr size_t kLine = 64;  // bytes
  static constexpr size_t kMaxLead = kLine - 1;

 private:
  size_t n_;
  size_t size_;
  size_t lead_ = 0;
};

// A sample of a row: `count` elements, in runs of kMinBucket at 0, stride, 2 * stride, ... Its
// `bound_rank`-th best is a bound that enough elements of a row in random order reach, by a margin
// of four standard deviations. count = 0: no sample.
struct SamplePlan {
  size_t count;
  size_t stride;
  size_t bound_rank;
};
SamplePlan PlanSample(size_t n, size_t k);

// The scratch of a kernel for one row.
struct BucketScratch {
  RowScratch row;
  core::ScratchArray<uint8_t>
      maxima;  // [buckets + kSlack] keys, for rows that one thread does alone
  size_t bytes = 0;
};
BucketScratch PlanBucketScratch(const RowTask& task);

}  // namespace riffle::topk
