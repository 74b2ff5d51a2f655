// What the entry points of top-k refuse.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_batch.h"

namespace riffle::topk {

inline constexpr int64_t kMaxColumns = std::numeric_limits<int32_t>::max();

// Throw Error: kBadShape, kBadDType, kBadOption.
void CheckInput(const MatrixView& x);
void CheckOptions(const TopKOptions& options, DType dtype);
void CheckLanes(int lanes, std::span<const int> depth_schedule);

// Outputs that are there, whose rows do not overlap each other, the inputs or other outputs. Throws
// Error: kBadShape, kOverlap.
void CheckOutputs(const TopKBatch& batch);

}  // namespace riffle::topk
