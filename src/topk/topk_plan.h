// How a row is reduced: a pure function of shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"

namespace riffle::topk {

// Bucket maxima for k of n elements, in buckets of `size` neighbours; BucketBounds has where they
// begin.
struct BucketPlan {
  int64_t size = 0;     // a power of two, kMinBucket to kMaxBucket
  int64_t buckets = 0;  // ceil(n / size); 0: the row is too short or k too large for a first pass
                        // to pay, and all elements are candidates
};
constexpr int64_t kMinBucket = 32;  // a whole number of vectors for every dtype and target, but 64
                                    // for the 1-byte dtypes
constexpr int64_t kMaxBucket = 128;
BucketPlan PlanBuckets(int64_t n, int64_t k, DType dtype = DType::kF32);

// Lane sort's default depths for one row.
std::vector<int> PlanDepths(int64_t n, int64_t k, int lanes);

}  // namespace riffle::topk
