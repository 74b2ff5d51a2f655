// How a row is reduced: a pure function of shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"

namespace riffle::topk {

// Bucket maxima for k of n elements, in buckets of `size` neighbours. BucketBounds says where they
// begin.
struct BucketPlan {
  int64_t size = 0;     // a power of two, kMinBucket to kMaxBucket
  int64_t buckets = 0;  // ceil(n / size); 0: no first pass, all elements are candidates, since the
                        // row is too short or k too large for a first pass to save time
};
constexpr int64_t kMinBucket = 32;  // a whole number of vectors for every dtype and target, except
                                    // the 1-byte dtypes, whose buckets have at least 64
constexpr int64_t kMaxBucket = 128;
BucketPlan PlanBuckets(int64_t n, int64_t k, DType dtype = DType::kF32);

// The depths that lane sort tries by default for one row.
std::vector<int> PlanDepths(int64_t n, int64_t k, int lanes);

}  // namespace riffle::topk
