#include "testing/sampling_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "testing/reference.h"

namespace riffle::test {
namespace {

constexpr double kBin = 12;

double Weight(double x, double max, double temperature) {
  return x == max ? 1.0 : std::exp((x - max) / temperature);
}

// The smallest prefix of the first k weights whose share reaches p, less what min_p cuts off.
int64_t Kept(const std::vector<double>& weights, int64_t k, double p, double min_p) {
  double total = 0;
  for (int64_t i = 0; i < k; ++i) total += weights[static_cast<size_t>(i)];
  int64_t count = 0;
  for (double sum = 0; count < k && (count == 0 || sum < p * total); ++count) {
    sum += weights[static_cast<size_t>(count)];
  }
  while (count > 1 && weights[static_cast<size_t>(count - 1)] < min_p) --count;
  return count;
}

}  // namespace

ExactDistribution ReferenceDistribution(const MatrixView& x, int64_t row,
                                        const SampleParameters& parameters) {
  ExactDistribution exact;
  exact.columns = ReferenceTopK(x, row, 0, x.cols, x.cols);
  const double max = Decode(x.dtype, ElementAt(x, row, exact.columns[0]));
  if (parameters.temperature == 0) {
    exact.weights = {1};
    exact.kept = exact.least = exact.most = 1;
    return exact;
  }
  for (const int32_t column : exact.columns) {
    exact.weights.push_back(Weight(Decode(x.dtype, ElementAt(x, row, column)), max,
                                   static_cast<double>(parameters.temperature)));
  }
  const int64_t k = parameters.top_k == 0 ? x.cols : std::min<int64_t>(parameters.top_k, x.cols);
  const auto p = static_cast<double>(parameters.top_p);
  const auto min_p = static_cast<double>(parameters.min_p);
  constexpr double kRounding = 1e-6;
  const double all = std::numeric_limits<double>::infinity();
  exact.kept = Kept(exact.weights, k, p == 1 ? all : p, min_p);
  exact.least = Kept(exact.weights, k, p == 1 ? all : p - kRounding, min_p * (1 + kRounding));
  exact.most = Kept(exact.weights, k, p == 1 ? all : p + kRounding, min_p * (1 - kRounding));
  return exact;
}

double ReferenceLogProb(const MatrixView& x, int64_t row, int64_t column) {
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < x.cols; ++i) max = std::max(max, Decode(x.dtype, ElementAt(x, row, i)));
  double sum = 0;
  for (int64_t i = 0; i < x.cols; ++i) sum += Weight(Decode(x.dtype, ElementAt(x, row, i)), max, 1);
  const double value = Decode(x.dtype, ElementAt(x, row, column));
  return (value == max ? 0 : value - max) - std::log(sum);
}

double ChiSquaredExcess(const ExactDistribution& exact, const std::vector<int32_t>& draws) {
  std::vector<int64_t> seen(exact.columns.size());
  for (const int32_t token : draws) ++seen[static_cast<size_t>(token)];
  double total = 0;
  for (int64_t i = 0; i < exact.kept; ++i) total += exact.weights[static_cast<size_t>(i)];
  const auto count = static_cast<double>(draws.size());
  double statistic = 0;
  double expected = 0;
  double observed = 0;
  double left = count;
  int bins = 0;
  for (int64_t i = 0; i < exact.kept; ++i) {
    const double share = exact.weights[static_cast<size_t>(i)] / total * count;
    expected += share;
    left -= share;
    observed +=
        static_cast<double>(seen[static_cast<size_t>(exact.columns[static_cast<size_t>(i)])]);
    // The columns left over must fill a bin too.
    if ((expected >= kBin && left >= kBin) || i + 1 == exact.kept) {
      statistic += (observed - expected) * (observed - expected) / expected;
      ++bins;
      expected = observed = 0;
    }
  }
  if (bins == 1) return statistic - 1e-6;
  const double freedom = bins - 1;
  const double spread = 2 / (9 * freedom);
  const double quantile = freedom * std::pow(1 - spread + 4.753 * std::sqrt(spread), 3);
  return statistic - quantile;
}

}  // namespace riffle::test
