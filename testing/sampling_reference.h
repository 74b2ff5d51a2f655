// The exact distribution that draws must follow: a full sort of the row, and a softmax in double.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"

namespace riffle::test {

struct SampleParameters {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
};

// What sampling may draw from one row; the row has no NaN.
struct ExactDistribution {
  std::vector<int32_t> columns;  // all columns of the row, best first
  std::vector<double> weights;   // [columns], relative to the best column, whose weight is 1
  // The filters leave `kept` columns. Rounding of f32 weights acts like a change of top_p and min_p
  // by 1e-6, which would leave `least` to `most` columns.
  int64_t kept = 0;
  int64_t least = 0;
  int64_t most = 0;
};
ExactDistribution ReferenceDistribution(const MatrixView& x, int64_t row,
                                        const SampleParameters& parameters);

// The log-softmax of the raw row, without temperature or filters, at a column.
double ReferenceLogProb(const MatrixView& x, int64_t row, int64_t column);

// Pearson's chi-squared statistic of `draws` over the kept columns, minus its 1 - 1e-6 quantile
// (approximated after Wilson and Hilferty). Columns that are neighbours in the order share a bin,
// so that 12 draws or more are expected in each. A positive result means that the draws do not
// follow the distribution.
double ChiSquaredExcess(const ExactDistribution& exact, const std::vector<int32_t>& draws);

}  // namespace riffle::test
