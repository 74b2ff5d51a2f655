// The kernels of sampling, and what they are given.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/types.h"

namespace riffle::sampling {

// A row of logits without NaN, and its weights: 1 where x == max, else
// 2^((x * unit - max * unit) * scale). So a largest logit of +inf leaves nothing but the columns
// that are +inf. The unit is a power of two, 1 unless differences of logits as large as f32 has
// them count, which would overflow.
struct WeightRow {
  const uint8_t* x = nullptr;  // any alignment
  DType dtype = DType::kF32;
  float max = 0;  // > -inf
  float scale = 0;
  float unit = 1;
};

// Which columns take part: x > above and weight >= least.
struct Cut {
  float above = 0;
  float least = 0;
};

// The best columns that reach a mass: those of x > threshold, and the first `ties` of those equal
// to it.
struct Nucleus {
  float threshold = 0;
  float tie_weight = 0;
  int64_t ties = 0;
};

// `weights` writes as many more.
constexpr int64_t kWeightSlack = 16;

// Bytes of scratch of `find_nucleus` for a row of n columns.
constexpr size_t NucleusScratch(int64_t n) {
  return 2 * sizeof(float) * static_cast<size_t>((n + 2 * kWeightSlack) / 16 * 16);
}

struct SamplingKernels {
  // The sum of weights of columns [begin, end), in an order that depends on end - begin alone; with
  // a cut, of those that it keeps.
  double (*sum_weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end);

  // out[0, end - begin) = weights, 0 for a column that is cut; kWeightSlack more may be written.
  void (*weights)(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end, float* out);

  // The smallest nucleus of row [0, n) whose mass is at least `mass`; all columns of positive
  // weight if theirs is less. `scratch` has NucleusScratch(n) bytes, aligned to kScratchAlignment.
  Nucleus (*find_nucleus)(const WeightRow& row, int64_t n, double mass, uint8_t* scratch);

  // The column of the element number `place`, from 0, of those equal to `value`; the last one where
  // there are not so many, since another thread wrote to the row.
  int64_t (*find_equal)(const WeightRow& row, int64_t n, float value, int64_t place);
};

// Those of the target in use.
const SamplingKernels& GetSamplingKernels();

}  // namespace riffle::sampling
