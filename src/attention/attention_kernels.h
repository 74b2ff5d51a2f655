// The kernels that the door runs on the target in use.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/attention_args.h"

namespace riffle {

// Bytes of a thread's scratch for the units of a plan.
size_t AttentionScratchBytes(const AttentionShape& shape, const Plan& plan);

// Runs units [begin, end). `slots` has room for plan.slot_floats.
void RunUnits(const AttentionArgs& args, const Plan& plan, const Unit* begin, const Unit* end,
              float* slots, uint8_t* scratch);

// Folds the states of one KV head (an index into the column's) of a split column, in their order,
// into the first one, and writes results.
void MergeSplit(const AttentionArgs& args, const Split& split, int head, float* slots);

// Reads the tiles of units [begin, end) in kernel order; the largest byte.
uint8_t ReadUnits(const AttentionArgs& args, const Unit* begin, const Unit* end);

// Row [dim] of `dtype`: out = sum of weights[i] * rows[i], i < n, in order; rows of weight 0 are
// not read.
void WeightedSum(DType dtype, const uint8_t* const* rows, const float* weights, int64_t n, int dim,
                 uint8_t* out);

// Runs `steps` times `flops / steps` floating-point operations on registers; returns the
// operations.
double SpinDots(DType dtype, int64_t steps);

}  // namespace riffle
