// The argument checks of the entry points of top-k.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_batch.h"

namespace riffle::topk {

inline constexpr int64_t kMaxColumns = std::numeric_limits<int32_t>::max();

// These throw Error: kBadShape, kBadDType, kBadOption.
void CheckInput(const MatrixView& x);
void CheckOptions(const TopKOptions& options, DType dtype);
void CheckLanes(int lanes, std::span<const int> depth_schedule);

// Checks that the outputs exist and that their rows overlap neither each other, nor the inputs, nor
// other outputs. Throws Error: kBadShape, kOverlap.
void CheckOutputs(const TopKBatch& batch);

}  // namespace riffle::topk
