// The kernels of sampling and their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/types.h"

namespace riffle::sampling {

// A row of logits without NaN, and its weights: 1 where x == max, otherwise 2^((x * unit - max *
// unit) * scale). So if the largest logit is +inf, only the columns that are +inf have a weight.
// The unit is a power of two. It is 1 unless the temperature is so high that differences as large
// as f32's range matter, which would overflow.
struct WeightRow {
  const uint8_t* x = nullptr;  // any alignment
  DType dtype = DType::kF32;
  float max = 0;  // > -inf
  float scale = 0;
  float unit = 1;
};

// Which columns take part: x > above and weight >= min_weight.
struct Cut {
  float above = 0;
  float min_weight = 0;
};

// The best columns that together reach a mass: those of x > threshold, and the first `ties` columns
// of x == threshold.
struct Nucleus {
  float threshold = 0;
  float tie_weight = 0;
  int64_t ties = 0;
};

// `weights` may write this many elements more.
constexpr int64_t kWeightSlack = 16;

// Bytes of scratch of `find_nucleus` for a row of n columns.
constexpr size_t NucleusScratch(int64_t n) {
  return 2 * sizeof(float) * static_cast<size_t>((n + 2 * kWeightSlack) / 16 * 16);
}

// Rows of fewer columns are searched for their nucleus as a whole.
constexpr int64_t kMinWindowed = 16384;

// An estimate samples the first kEstimateRun of every kEstimateStep columns and sums their weights.
// It places the window by the first 16 of every kPickStep * 16 sampled columns.
constexpr int64_t kEstimateStep = 4096;
constexpr int64_t kEstimateRun = 512;
constexpr int64_t kPickStep = 8;
constexpr int64_t EstimateRoom(int64_t n) {
  return (n / kEstimateStep + 1) * (kEstimateRun / kPickStep);
}
static_assert(sizeof(float) * EstimateRoom(kMinWindowed) <= NucleusScratch(kMinWindowed));

// How many columns of a row of n may be in its window, which is expected to have a few percent, or
// a quarter where the estimate is poor.
constexpr int64_t WindowRoom(int64_t n) { return n / 2 + 4096; }

// How many columns a window of few columns may keep (WindowEstimate::few); some 3000 are expected.
constexpr int64_t kFewRoom = 8192;

// What is known of a row before its window is estimated.
struct WindowTarget {
  double share = 0;  // the share of the mass that the nucleus must reach
  double mass = 0;   // of the row, relative to row.max; 0: it and row.max are unknown
};

// The values between which the last column of the nucleus is estimated to be, both included.
struct WindowEstimate {
  // The logit to which weights are relative until the maximum is known. Not finite: there is no
  // estimate, because the best logit of the sample is not finite.
  float pivot = 0;
  double mass = 0;  // of the row, relative to the pivot
  float low = 0;
  float high = 0;
  // Only a few columns are estimated to reach `low`, and `high` is infinite.
  bool few = false;
  float few_low = 0;  // always set: a value that few columns are estimated to reach
};

struct WindowSums {
  double total =
      0;  // sum of weights, same bits as sum_weights; sum_and_keep_top: without those kept
  double above = 0;   // sum of the weights above the window
  int64_t count = 0;  // how many columns are in the window
  float max = 0;  // of all columns; sum_and_keep_top: of those in the window, -inf if there is none
};

struct SamplingKernels {
  // The sum of the weights of columns [begin, end), or of those that the cut keeps. The order of
  // the additions depends on end - begin alone.
  double (*sum_weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end);

  // Stores the weights in out[0, end - begin), 0 for a column that the cut drops. May write
  // kWeightSlack elements more.
  void (*weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end, float* out);

  // The smallest nucleus of row [0, n) whose mass plus `above`, the mass of better columns that are
  // not in this row, is at least `mass`; if all have less, all columns of positive weight.
  // `scratch` has NucleusScratch(n) bytes, aligned to kScratchAlignment.
  Nucleus (*find_nucleus)(const WeightRow& row, int64_t n, double above, double mass,
                          uint8_t* scratch);

  // Estimates the window of a target. `scratch` has NucleusScratch(n) bytes. Pre: n >=
  // kMinWindowed; the row has a scale that is finite and a unit of 1; row.max is known if
  // target.mass is.
  WindowEstimate (*estimate_window)(const WeightRow& row, int64_t n, const WindowTarget& target,
                                    uint8_t* scratch);

  // Sums columns [begin, end) and stores those in the window, in f32 and in their order, in
  // `values`, which has room for end - begin + kWeightSlack. Here row.max is any pivot: a column
  // far above it makes the sums meaningless, but not `max`. If there is a NaN, `all` is NaN.
  WindowSums (*sum_window)(const WeightRow& row, const WindowEstimate& window, int64_t begin,
                           int64_t end, float* values);

  // Sums columns [begin, end) below `low` likewise and stores the others, in f32 and in their
  // order, with their numbers. There is room for end - begin + kWeightSlack of each. Pre: row.max
  // is not far below `low`, so that no weight in the sum overflows.
  WindowSums (*sum_and_keep_top)(const WeightRow& row, float low, int64_t begin, int64_t end,
                                 float* values, int32_t* columns);

  // Stores the same columns as sum_and_keep_top but sums nothing. Returns how many there are.
  int64_t (*keep_top)(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                      int32_t* columns);

  // The column of element number `place` (from 0) among those equal to `value`. If another thread
  // wrote to the row and there are fewer, the last column.
  int64_t (*find_equal)(const WeightRow& row, int64_t n, float value, int64_t place);

  // Writes -inf to the elements of x[0, n), which is the row itself, in f32, except for those that
  // the cut keeps and the nucleus's ties. Kept elements are not written.
  void (*mask)(const WeightRow& row, int64_t n, const Cut& cut, const Nucleus& nucleus, float* x);
};

// The kernels for the target in use.
const SamplingKernels& GetSamplingKernels();

}  // namespace riffle::sampling
