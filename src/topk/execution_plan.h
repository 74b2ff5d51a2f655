// How a call of top-k is divided among threads: a pure function of its shape.
#pragma once

#include <cstdint>

#include "riffle/topk.h"

namespace riffle::topk {

struct TopKShape {
  int64_t rows = 0;
  int64_t n = 0;  // columns
  int64_t k = 0;  // the largest of any row; it may exceed n
  DType dtype = DType::kF32;
  bool uniform = true;       // whole rows that all have the same k
  bool stats = false;        // statistics are wanted
  int64_t narrow_lanes = 0;  // rows that the target's narrow kernel takes at once; 0: it has none
};

constexpr int64_t kMaxSplitRows = 64;

TopKExecution PlanExecution(const TopKShape& shape, int threads);

// How many lanes a vector of packed keys and columns has; 0 for dtypes that are not packed.
int64_t NarrowLanes(DType dtype, int vector_bytes);

}  // namespace riffle::topk
