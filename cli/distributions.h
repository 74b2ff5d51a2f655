// The data that top-k is timed on: what logits look like, and orders that hurt other methods.
#pragma once

#include <cstdint>

#include "riffle/types.h"

namespace riffle::cli {

enum class Distribution : uint8_t {
  kNormal,          // independent, mean 0, deviation 1
  kAscending,       // the same, sorted: every element beats all before it
  kDescending,      // sorted the other way
  kAllEqual,        // one value: all ties
  kOrganPipe,       // rises to the middle, then falls
  kHotBucket,       // normal, but the largest are 64 neighbours
  kHotLane,         // normal, but the largest share one column modulo 128
  kFewValues,       // 64 distinct values: long runs of ties
  kMostlyMinusInf,  // masked logits: 200 finite in even rows, 20 in odd ones
  kLogProbs,        // log-softmax of normal: all negative
};

constexpr Distribution kDistributions[] = {
    Distribution::kNormal,   Distribution::kAscending, Distribution::kDescending,
    Distribution::kAllEqual, Distribution::kOrganPipe, Distribution::kHotBucket,
    Distribution::kHotLane,  Distribution::kFewValues, Distribution::kMostlyMinusInf,
    Distribution::kLogProbs,
};

const char* Name(Distribution distribution);

// Fills data [rows, cols] of `dtype`, the same on every call. Rows from the 64th on repeat earlier
// ones, rotated: drawing 400 million normal numbers would take longer than everything else.
void Fill(Distribution distribution, DType dtype, int64_t rows, int64_t cols, void* data);

}  // namespace riffle::cli
