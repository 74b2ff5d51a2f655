// The distribution that sampling is held against: a full sort, softmax in double.
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

// Of one row without NaN.
struct ExactDistribution {
  std::vector<int32_t> columns;  // of the whole row, best first
  std::vector<double> weights;   // of `columns`, the best one's is 1
  // How many columns are left, and how many could be were top_p or min_p off by 1e-6: what rounding
  // of f32 weights may do.
  int64_t kept = 0;
  int64_t least = 0;
  int64_t most = 0;
};
ExactDistribution ReferenceDistribution(const MatrixView& x, int64_t row,
                                        const SampleParameters& parameters);

// Log-softmax of the raw row at a column.
double ReferenceLogProb(const MatrixView& x, int64_t row, int64_t column);

// Pearson's statistic of `draws` over the kept columns, in bins of neighbours in the order that are
// expected at least `kBin` times each, less its 1 - 1e-6 quantile (Wilson and Hilferty): positive
// means that the draws do not follow the distribution.
double ChiSquaredExcess(const ExactDistribution& exact, const std::vector<int32_t>& draws);

}  // namespace riffle::test
