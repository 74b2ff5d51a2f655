// Limits and scratch of lane sort: pure functions of shapes, the same on every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/scratch_layout.h"
#include "topk/row_scratch.h"
#include "topk/topk_args.h"

namespace riffle::topk {

// The relative cost of a pass over a row that keeps the best `depth` elements of each lane.
double PassCost(int64_t depth);

// A pass of this depth always certifies: no lane holds that many of the k best.
int64_t LastDepth(int64_t n, int64_t k, int64_t lanes);

// The elements kept, and room to sort them: [last_depth * lanes + kSlack] elements each.
struct LaneScratch {
  RowScratch row;
  core::ScratchArray<int32_t> index_keys;
  core::ScratchArray<int32_t> positions;
  core::ScratchArray<uint8_t> sorted_keys;  // of the dtype
  core::ScratchArray<int32_t> sorted_indices;
  size_t bytes = 0;
  int64_t last_depth = 0;
};
LaneScratch PlanLanes(const RowTask& task, const LaneOptions& options);

}  // namespace riffle::topk
