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

struct SamplingKernels {
  // The sum of the weights of columns [begin, end), or of those that the cut keeps. The order of
  // the additions depends on end - begin alone.
  double (*sum_weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end);

  // Stores the weights in out[0, end - begin), 0 for a column that the cut drops. May write
  // kWeightSlack elements more.
  void (*weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end, float* out);

  // The smallest nucleus of row [0, n) with a mass of at least `mass`; if the whole row has less,
  // all columns of positive weight. `scratch` has NucleusScratch(n) bytes, aligned to
  // kScratchAlignment.
  Nucleus (*find_nucleus)(const WeightRow& row, int64_t n, double mass, uint8_t* scratch);

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
