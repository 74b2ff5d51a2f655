// The arrays that selection in one row works in, placed by either algorithm's plan.
#pragma once

#include <cstdint>

#include "core/scratch_layout.h"

namespace riffle::topk {

struct RowScratch {
  core::ScratchArray<uint8_t> keys;     // [candidates + kSlack] keys
  core::ScratchArray<int32_t> indices;  // [candidates + kSlack]
  core::ScratchArray<int32_t> buckets;  // [BucketLimit + kSlack]; bucket maxima only
  core::ScratchArray<int32_t> ties;     // [k + kSlack]
  core::ScratchArray<uint64_t> pairs;   // [2 * sorted] of PairBytes
};

}  // namespace riffle::topk
