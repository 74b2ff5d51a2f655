// The matrices that top-k is timed on: rows of the testing library's distributions, under the names
// that published results use.
#pragma once

#include <cstdint>

#include "riffle/types.h"
#include "testing/distributions.h"

namespace riffle::cli {

using test::Distribution;

struct TimedDistribution {
  Distribution distribution;
  const char* name;
};

// What logits look like, and orders of data that make other methods slow.
inline constexpr TimedDistribution kTimedDistributions[] = {
    {Distribution::kNormal, "normal"},
    {Distribution::kAscending, "ascending"},
    {Distribution::kDescending, "descending"},
    {Distribution::kAllEqual, "all-equal"},
    {Distribution::kOrganPipe, "organ-pipe"},
    {Distribution::kHotBucket, "hot-bucket"},
    {Distribution::kHotLane, "hot-lane"},
    {Distribution::kTies, "64-values"},
    {Distribution::kMostlyMinusInf, "mostly-minus-inf"},
    {Distribution::kLogProbs, "log-probs"},
};

// The name in kTimedDistributions. Pre: `distribution` is in it.
const char* NameOf(Distribution distribution);

// Fills data [rows, cols] of `dtype` for a call with `k`; the same arguments give the same data.
// Rows from the 64th on repeat earlier ones, rotated: drawing 400 million normal numbers would take
// longer than everything else.
void Fill(Distribution distribution, DType dtype, int64_t rows, int64_t cols, int64_t k,
          void* data);

}  // namespace riffle::cli
