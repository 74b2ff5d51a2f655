// How many of the k best of a row fall into the same lane.
#pragma once

#include <cstdint>
#include <vector>

namespace riffle::topk {

// The distribution of the depth, the largest number of k elements that share one of `lanes` lanes
// when each falls into a lane at random. P(depth < first) and P(depth > first + pmf.size() - 1) are
// below the smallest double.
struct DepthDistribution {
  int64_t first = 1;
  std::vector<double> pmf;  // P(depth = first + i)
  // P(depth <= first + i) and P(depth > first + i), each added from its small end: the relative
  // error is that of the terms.
  std::vector<double> within, above;

  double Within(int64_t m) const;  // P(depth <= m)
  double Above(int64_t m) const;   // P(depth > m)
};

// k, lanes >= 1. The relative error is about 1e-12 for k <= kMaxExactDepths. For larger k the
// lanes count as independent of each other: the upper tail is right to a few percent, and what is
// twelve deviations of a lane away is left out.
DepthDistribution Depths(int64_t k, int64_t lanes);
constexpr int64_t kMaxExactDepths = 65536;

}  // namespace riffle::topk
