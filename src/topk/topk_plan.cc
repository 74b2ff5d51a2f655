#include "topk/topk_plan.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/entry_point.h"
#include "riffle/topk.h"
#include "topk/lane_sort/depth.h"
#include "topk/lane_sort/lane_sort.h"
#include "topk/topk_check.h"

namespace riffle {
namespace {

// P(depth <= m)^rows.
double AllWithin(const topk::DepthDistribution& depths, int64_t m, double rows) {
  if (rows == 0) {
    return 1;
  }
  const double above = depths.Above(m);
  return std::exp(rows * (above < 0.5 ? std::log1p(-above) : std::log(depths.Within(m))));
}

}  // namespace

std::vector<double> DepthProbabilities(int k, int lanes) try {
  const core::EntryPoint entry;
  core::Check(k >= 1 && k <= topk::kMaxExactDepths, Code::kBadK, "k = ", k, " but must be in 1..",
              topk::kMaxExactDepths);
  core::Check(lanes >= 1 && lanes <= (1 << 20), Code::kBadOption, "lanes = ", lanes,
              " but must be in 1..", 1 << 20);
  const topk::DepthDistribution depths = topk::Depths(k, lanes);
  std::vector<double> result(static_cast<size_t>(k), 0.0);
  std::copy(depths.pmf.begin(), depths.pmf.end(), result.begin() + (depths.first - 1));
  return result;
} catch (...) {
  core::RethrowAsError();
}

TopKPlan PlanTopK(int64_t n, int64_t k, int64_t rows, int lanes,
                  std::span<const int> depth_schedule) try {
  const core::EntryPoint entry;
  core::Check(n >= 1 && n <= topk::kMaxColumns, Code::kBadShape, "n = ", n, " but must be in 1..",
              topk::kMaxColumns);
  core::Check(k >= 1 && k <= n, Code::kBadK, "k = ", k, " but must be in 1..n = ", n);
  core::Check(rows >= 0, Code::kBadShape, "rows = ", rows, " but must not be negative");
  topk::CheckLanes(lanes, depth_schedule);

  TopKPlan plan;
  const topk::BucketPlan bucket_plan = topk::PlanBuckets(n, k);
  plan.buckets = bucket_plan.buckets;
  plan.bucket_size = bucket_plan.size;
  plan.depth_schedule = depth_schedule.empty()
                            ? topk::PlanDepths(n, k, lanes)
                            : std::vector<int>(depth_schedule.begin(), depth_schedule.end());

  const topk::DepthDistribution depths = topk::Depths(k, lanes);
  const int64_t last = topk::LastDepth(n, k, lanes);
  const double batch = static_cast<double>(rows);
  for (const int m : plan.depth_schedule) {
    plan.batch_done.push_back(m >= last ? 1.0 : AllWithin(depths, m - 1, batch));
  }
  // E[depth] = sum over m >= 0 of P(depth > m), which is 1 below the first possible depth.
  const int64_t first = std::min(depths.first, last - 1);
  plan.expected_depth = static_cast<double>(first);
  plan.expected_batch_depth = rows == 0 ? 0 : plan.expected_depth;
  for (int64_t m = first; m + 1 < last && depths.Above(m) > 0; ++m) {
    plan.expected_depth += depths.Above(m);
    plan.expected_batch_depth += 1 - AllWithin(depths, m, batch);
  }
  return plan;
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
