// How deep the k best of a row pile up in the lanes they fall into.
#pragma once

#include <cstdint>
#include <vector>

namespace riffle {

// The distribution of the depth, the largest number of k elements that share one of `lanes` lanes
// when each falls into a lane at random. P(depth < first) and P(depth > first + pmf.size() - 1) are
// below the smallest double.
struct DepthDistribution {
  int64_t first = 1;
  std::vector<double> pmf;    // P(depth = first + i)
  std::vector<double> above;  // P(depth > first + i), added from the far end: as exact as the terms

  // P(depth > m).
  double Above(int64_t m) const;
};

// Pre: k, lanes >= 1. The relative error is about 1e-11 for k <= kMaxExactDepths. For larger k the
// lanes count as independent Poisson variables, which is off by the order of 1 / k, and what is
// twelve deviations away from the mean is left out.
DepthDistribution Depths(int64_t k, int64_t lanes);
constexpr int64_t kMaxExactDepths = 65536;

}  // namespace riffle
