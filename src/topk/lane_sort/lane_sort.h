// Limits and scratch of the lane sort: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "topk/finish.h"
#include "topk/topk_kernels.h"

namespace riffle::topk {

// What a pass over a row costs that keeps the best `depth` of each lane, relative.
double PassCost(int64_t depth);

// A pass of this depth certifies: no lane holds more of the k best than it has elements.
int64_t LastDepth(int64_t n, int64_t k, int64_t lanes);

// What is kept, and room to sort it.
struct LaneLayout {
  FinishLayout finish;  // keys, indices: [last_depth * lanes + kSlack]; pairs
  size_t index_keys;    // [last_depth * lanes + kSlack] int32, as all below but
  size_t positions;
  size_t sorted_keys;  // of the dtype
  size_t sorted_indices;
  size_t bytes;
  int64_t last_depth;
};
LaneLayout PlanLanes(const RowTask& task, const LaneOptions& options);

}  // namespace riffle::topk
