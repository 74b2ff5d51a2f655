// The kernels that the entry points run on the target in use.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/attention_args.h"

namespace riffle::attention {

// Bytes of a thread's scratch for the work items of a plan.
size_t AttentionScratchBytes(const AttentionArgs& args, const Plan& plan);

// Runs work items [begin, end). `partial_states` has room for the states of the
// plan (PartialStateFloats).
void RunWorkItems(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
                  const WorkItem* end, float* partial_states, uint8_t* scratch);

// Merges the states of one KV head (an index into the column's) of a split column, in their order,
// into the first one, and writes results.
void MergeSplit(const AttentionArgs& args, const KvSplit& split, int head, float* partial_states);

// Reads the tiles of work items [begin, end) in kernel order; the largest byte.
uint8_t ReadWorkItems(const AttentionArgs& args, const WorkItem* begin, const WorkItem* end);

// Row [dim] of `dtype`: out = sum of weights[i] * rows[i], i < n, in order; rows of weight 0 are
// not read.
void WeightedSum(DType dtype, const uint8_t* const* rows, const float* weights, int64_t n, int dim,
                 uint8_t* out);

// Runs `steps` times `flops / steps` floating-point operations on registers; returns the
// operations.
double SpinDots(DType dtype, int64_t steps);

}  // namespace riffle::attention
