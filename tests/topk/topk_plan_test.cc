// The planner. The distribution of the depth is compared with exact counting, a dynamic programme
// and a simulation; schedules are compared with the best of all schedules.
#include "topk/topk_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "riffle/error.h"
#include "riffle/topk.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/text.h"
#include "topk/lane_sort/depth.h"
#include "topk/lane_sort/lane_sort.h"

namespace riffle::test {
namespace {

using Wide = unsigned __int128;

// How many of the lanes^k ways to throw k balls into lanes leave at most m balls in each lane, as
// an integer. It goes lane by lane and counts the choices of the remaining balls that go there.
Wide WaysWithin(int k, int lanes, int m) {
  std::vector<Wide> ways(static_cast<size_t>(k) + 1, 0);  // [balls placed]
  ways[0] = 1;
  for (int lane = 0; lane < lanes; ++lane) {
    std::vector<Wide> next(ways.size(), 0);
    for (int placed = 0; placed <= k; ++placed) {
      Wide choices = 1;  // (k - placed) choose j
      for (int j = 0; j <= m && placed + j <= k; ++j) {
        next[static_cast<size_t>(placed + j)] += ways[static_cast<size_t>(placed)] * choices;
        choices = choices * static_cast<Wide>(k - placed - j) / static_cast<Wide>(j + 1);
      }
    }
    ways = next;
  }
  return ways[static_cast<size_t>(k)];
}

TEST(DepthProbabilities, ExactCounts) {
  for (int lanes = 1; lanes <= 17; ++lanes) {
    for (int k = 1; k <= 30 && k * std::log2(lanes) < 110; ++k) {
      const std::vector<double> p = DepthProbabilities(k, lanes);
      ASSERT_EQ(p.size(), static_cast<size_t>(k));
      const double total = std::pow(static_cast<double>(lanes), k);
      for (int m = 1; m <= k; ++m) {
        const Wide ways = WaysWithin(k, lanes, m) - WaysWithin(k, lanes, m - 1);
        const double exact = static_cast<double>(ways) / total;
        ASSERT_NEAR(p[static_cast<size_t>(m) - 1], exact, 1e-13 * exact)
            << "k=" << k << " lanes=" << lanes << " m=" << m;
      }
    }
  }
}

// P(depth = m) by adding lane after lane: `within` are the ways with fewer than m in each lane so
// far, `hit` those with m in one and no more in any. Nothing is subtracted.
double DepthByLanes(int k, int lanes, int m) {
  using Real = long double;
  const auto size = static_cast<size_t>(k) + 1;
  const Real mean = static_cast<Real>(k) / lanes;
  std::vector<Real> poisson(static_cast<size_t>(m) + 1);  // scales the sums; cancels below
  poisson[0] = std::exp(-mean);
  for (size_t j = 1; j < poisson.size(); ++j) {
    poisson[j] = poisson[j - 1] * mean / static_cast<Real>(j);
  }
  std::vector<Real> within(size, 0), hit(size, 0);
  within[0] = 1;
  const auto depth = static_cast<size_t>(m);
  for (int lane = 0; lane < lanes; ++lane) {
    for (size_t balls = size; balls-- > 0;) {  // in place: what is read is not yet replaced
      Real next_within = 0, next_hit = 0;
      for (size_t j = 0; j <= std::min(depth, balls); ++j) {
        next_within += j < depth ? within[balls - j] * poisson[j] : 0;
        next_hit += hit[balls - j] * poisson[j];
      }
      next_hit += balls >= depth ? within[balls - depth] * poisson[depth] : 0;
      within[balls] = next_within;
      hit[balls] = next_hit;
    }
  }
  Real scale = std::exp(-static_cast<Real>(k));  // P(Poisson(k) = k)
  for (int i = 1; i <= k; ++i) {
    scale *= static_cast<Real>(k) / static_cast<Real>(i);
  }
  return static_cast<double>(hit[size - 1] / scale);
}

TEST(DepthProbabilities, LaneByLane) {
  struct Case {
    int k, lanes;
    std::vector<int> depths;
  };
  const Case cases[] = {
      {64, 128, {1, 2, 3, 4, 5, 9, 20, 33, 64}},
      {64, 100, {1, 2, 3, 7}},
      {1024, 128, {8, 9, 12, 16, 20, 44, 60}},
      {1000, 128, {8, 9, 16, 45}},
      {512, 7, {74, 75, 80, 100, 150, 257}},
      {300, 2, {150, 151, 170, 200, 299}},
      {500, 3, {167, 168, 180, 249, 250, 251}},
      {200, 1000, {1, 2, 3, 8}},
      {2048, 1, {2047, 2048}},
  };
  for (const Case& c : cases) {
    const std::vector<double> p = DepthProbabilities(c.k, c.lanes);
    for (const int m : c.depths) {
      const double exact = DepthByLanes(c.k, c.lanes, m);
      EXPECT_NEAR(p[static_cast<size_t>(m) - 1], exact, 1e-11 * exact)
          << "k=" << c.k << " lanes=" << c.lanes << " m=" << m;
    }
  }
}

TEST(DepthProbabilities, PublishedShape) {
  const std::vector<double> p = DepthProbabilities(64);
  EXPECT_NEAR(p[1], 0.13437, 0.5e-5);
  EXPECT_NEAR(p[2], 0.67366, 0.5e-5);
  EXPECT_NEAR(p[3], 0.17274, 0.5e-5);
}

// A probability that is zero, or too small for a double, is exactly 0.
TEST(DepthProbabilities, Zeros) {
  const std::vector<double> p = DepthProbabilities(1024, 128);
  for (int m = 1; m < 8; ++m) {
    EXPECT_EQ(p[static_cast<size_t>(m) - 1], 0.0) << m;
  }
  EXPECT_GT(p[7], 0.0);
  EXPECT_EQ(p[1023], 0.0);  // 128^-1023
  EXPECT_EQ(DepthProbabilities(65536, 1 << 20)[0], 0.0);
}

TEST(DepthProbabilities, SumsToOne) {
  for (const int k : {1, 2, 3, 64, 1000, 4096, 65536}) {
    for (const int lanes : {1, 2, 3, 4, 31, 128, 4096, 100000, 1 << 20}) {
      const std::vector<double> p = DepthProbabilities(k, lanes);
      double sum = 0;
      for (size_t i = p.size(); i-- > 0;) {
        ASSERT_GE(p[i], 0.0);
        sum += p[i];
      }
      EXPECT_NEAR(sum, 1.0, 1e-11) << "k=" << k << " lanes=" << lanes;
    }
  }
}

TEST(DepthProbabilities, Edges) {
  EXPECT_EQ(DepthProbabilities(1, 128), std::vector<double>{1.0});
  std::vector<double> one_lane(50, 0.0);
  one_lane.back() = 1.0;
  EXPECT_EQ(DepthProbabilities(50, 1), one_lane);
}

TEST(DepthProbabilities, Simulation) {
  Rng rng(7);
  for (const auto& [k, lanes] : {std::pair{64, 128}, std::pair{100, 24}, std::pair{3000, 128}}) {
    constexpr int kRuns = 20000;
    const std::vector<double> p = DepthProbabilities(k, lanes);
    std::vector<int> seen(static_cast<size_t>(k) + 1, 0);
    std::vector<int> load(static_cast<size_t>(lanes));
    for (int run = 0; run < kRuns; ++run) {
      std::fill(load.begin(), load.end(), 0);
      for (int i = 0; i < k; ++i) {
        ++load[static_cast<size_t>(rng.Below(lanes))];
      }
      ++seen[static_cast<size_t>(*std::max_element(load.begin(), load.end()))];
    }
    for (int m = 1; m <= k; ++m) {
      const double expected = kRuns * p[static_cast<size_t>(m) - 1];
      EXPECT_NEAR(seen[static_cast<size_t>(m)], expected, 5 * std::sqrt(expected) + 5)
          << "k=" << k << " lanes=" << lanes << " m=" << m;
    }
  }
}

// Above kMaxExactDepths the lanes are taken as independent, which must be near the exact values at
// the boundary.
TEST(DepthProbabilities, LargeK) {
  for (const int lanes : {2, 128, 4096}) {
    const topk::DepthDistribution exact = topk::Depths(topk::kMaxExactDepths, lanes);
    const topk::DepthDistribution near = topk::Depths(topk::kMaxExactDepths + 1, lanes);
    int compared = 0;
    for (int64_t m = exact.first; exact.Above(m) > 1e-12; ++m) {
      if (exact.Above(m) > 0.2) continue;
      EXPECT_NEAR(near.Above(m), exact.Above(m), 0.1 * exact.Above(m)) << m << ", lanes=" << lanes;
      ++compared;
    }
    EXPECT_GT(compared, 5);
    EXPECT_NEAR(near.Within(topk::kMaxExactDepths), 1.0, 1e-9);
  }
  const topk::DepthDistribution large = topk::Depths(1'000'000'000, 128);
  EXPECT_NEAR(large.Within(1'000'000'000), 1.0, 1e-9);
  EXPECT_EQ(large.Above(1'000'000'000), 0.0);
  EXPECT_EQ(large.Within(1'000'000'000 / 128 - 1), 0.0);
  EXPECT_EQ(topk::Depths(1'000'000, 1).Above(999'999), 1.0);
}

template <typename Call>
Code CodeOf(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()), "");
    return error.code();
  }
  ADD_FAILURE() << "did not throw";
  return Code::kOutOfMemory;
}

TEST(DepthProbabilities, Errors) {
  EXPECT_EQ(CodeOf([] { DepthProbabilities(0); }), Code::kBadK);
  EXPECT_EQ(CodeOf([] { DepthProbabilities(-1); }), Code::kBadK);
  EXPECT_EQ(CodeOf([] { DepthProbabilities(65537); }), Code::kBadK);
  EXPECT_EQ(CodeOf([] { DepthProbabilities(64, 0); }), Code::kBadOption);
  EXPECT_EQ(CodeOf([] { DepthProbabilities(64, (1 << 20) + 1); }), Code::kBadOption);
}

// The expected cost of a schedule at whose last depth the certificate always holds.
double ExpectedCost(const std::vector<int>& schedule, const topk::DepthDistribution& depths) {
  double cost = 0, fails = 1;
  for (const int m : schedule) {
    cost += fails * topk::PassCost(m);
    fails = depths.Above(m - 1);
  }
  return cost;
}

TEST(PlanDepths, NoScheduleIsCheaper) {
  for (const auto& [k, lanes] : {std::pair{8, 4}, std::pair{12, 16}, std::pair{10, 128}}) {
    const topk::DepthDistribution depths = topk::Depths(k, lanes);
    double least = std::numeric_limits<double>::infinity();
    const int last = k + 1;
    for (uint32_t chosen = 0; chosen < 1u << (last - 2); ++chosen) {  // depths 2..k
      std::vector<int> schedule;
      for (int m = 2; m < last; ++m) {
        if (chosen >> (m - 2) & 1) schedule.push_back(m);
      }
      schedule.push_back(last);
      least = std::min(least, ExpectedCost(schedule, depths));
    }
    const std::vector<int> planned = topk::PlanDepths(1'000'000, k, lanes);
    EXPECT_NEAR(ExpectedCost(planned, depths), least, 1e-6 * least) << "k=" << k;
  }
}

TEST(PlanDepths, IncreasesToADepthThatAlwaysCertifies) {
  for (const int64_t n : {1, 2, 127, 128, 129, 5000, 201088}) {
    for (const int64_t k : {1, 2, 64, 100, 1024, 4096, 200000}) {
      if (k > n) continue;
      for (const int lanes : {1, 2, 128, 4096}) {
        const std::vector<int> schedule = topk::PlanDepths(n, k, lanes);
        ASSERT_FALSE(schedule.empty());
        ASSERT_GE(schedule.front(), 2);
        ASSERT_TRUE(std::ranges::adjacent_find(schedule, std::greater_equal<>()) == schedule.end());
        const int64_t fullest = (n + lanes - 1) / lanes;
        ASSERT_EQ(schedule.back() - 1, std::min(k, fullest));
      }
    }
  }
}

TEST(PlanTopK, BatchAndExpectations) {
  constexpr int64_t kRows = 32;
  const TopKPlan plan = PlanTopK(201088, 64, kRows);
  const std::vector<double> p = DepthProbabilities(64, 128);
  ASSERT_EQ(plan.batch_done.size(), plan.depth_schedule.size());
  for (size_t i = 0; i < plan.batch_done.size(); ++i) {
    const double row = std::accumulate(p.begin(), p.begin() + plan.depth_schedule[i] - 1, 0.0);
    EXPECT_NEAR(plan.batch_done[i], std::pow(row, kRows), 1e-12);
  }
  EXPECT_EQ(plan.batch_done.back(), 1.0);
  double mean = 0, batch_mean = 0, before = 0, sum = 0;
  for (size_t m = 1; m <= p.size(); ++m) {
    sum += p[m - 1];
    const double batch = std::pow(std::min(sum, 1.0), kRows);
    mean += static_cast<double>(m) * p[m - 1];
    batch_mean += static_cast<double>(m) * (batch - before);
    before = batch;
  }
  EXPECT_NEAR(plan.expected_depth, mean, 1e-9);
  EXPECT_NEAR(plan.expected_batch_depth, batch_mean, 1e-9);
  EXPECT_GE(plan.expected_batch_depth, plan.expected_depth);
  EXPECT_GE(plan.buckets * plan.bucket_size, 201088);
}

TEST(PlanTopK, CustomScheduleAndShortRows) {
  const int schedule[] = {1, 2, 4};
  const TopKPlan plan = PlanTopK(201088, 64, 2, 128, schedule);
  EXPECT_EQ(plan.depth_schedule, (std::vector<int>{1, 2, 4}));
  const std::vector<double> p = DepthProbabilities(64, 128);
  EXPECT_EQ(plan.batch_done[0], 0.0);
  EXPECT_NEAR(plan.batch_done[1], p[0] * p[0], 1e-12 * p[0] * p[0]);
  EXPECT_NEAR(plan.batch_done[2], std::pow(p[0] + p[1] + p[2], 2), 1e-12);
  // With two elements in each lane no row can be deeper than 2, whatever k is.
  const TopKPlan all = PlanTopK(256, 256, 3);
  EXPECT_EQ(all.expected_depth, 2.0);
  EXPECT_EQ(all.expected_batch_depth, 2.0);
  EXPECT_EQ(all.batch_done.back(), 1.0);
  const TopKPlan none = PlanTopK(1000, 10, 0);  // no row is left
  EXPECT_EQ(none.batch_done.front(), 1.0);
  EXPECT_EQ(none.expected_batch_depth, 0.0);
}

TEST(PlanTopK, Errors) {
  EXPECT_EQ(CodeOf([] { PlanTopK(0, 1); }), Code::kBadShape);
  EXPECT_EQ(CodeOf([] { PlanTopK(int64_t{1} << 31, 1); }), Code::kBadShape);
  EXPECT_EQ(CodeOf([] { PlanTopK(10, 0); }), Code::kBadK);
  EXPECT_EQ(CodeOf([] { PlanTopK(10, 11); }), Code::kBadK);
  EXPECT_EQ(CodeOf([] { PlanTopK(10, 1, -1); }), Code::kBadShape);
  for (const int lanes : {0, -128, 3, 100, 8192}) {
    EXPECT_EQ(CodeOf([=] { PlanTopK(10, 1, 1, lanes); }), Code::kBadOption) << lanes;
  }
  for (const std::vector<int>& schedule : {std::vector<int>{0}, std::vector<int>{-1, 2},
                                           std::vector<int>{3, 3}, std::vector<int>{4, 2}}) {
    EXPECT_EQ(CodeOf([&] { PlanTopK(10, 1, 1, 128, schedule); }), Code::kBadOption);
  }
}

// The way a call goes, and the number of its tasks, depend on its shape alone.
TEST(PlanExecution, WaysAndTasks) {
  using Way = TopKExecution::Way;
  const auto plan = [](int64_t rows, int64_t n, int64_t k, int threads, DType dtype = DType::kF32) {
    return PlanTopKExecution(rows, n, k, dtype, threads);
  };
  EXPECT_EQ(plan(32, 201088, 64, 2).way, Way::kRows);
  EXPECT_EQ(plan(32, 201088, 64, 2).tasks, 32);
  EXPECT_EQ(plan(32, 201088, 64, 2).rows_per_task, 1);
  // A single row, or a number of rows that threads cannot share evenly, is split: every thread has
  // a chunk of each row.
  EXPECT_EQ(plan(1, 201088, 64, 2).way, Way::kSplit);
  EXPECT_EQ(plan(5, 201088, 64, 2).tasks, 10);
  EXPECT_EQ(plan(8, 201088, 64, 3).way, Way::kSplit);
  EXPECT_EQ(plan(9, 201088, 64, 3).way, Way::kRows);
  EXPECT_EQ(plan(1, 16000, 64, 2).way, Way::kRows) << "less than 64 KiB";
  EXPECT_EQ(plan(1, 201088, 64, 1).way, Way::kRows) << "nobody to share it with";
  // Short rows are handed out several at a time; a few of them are done by the caller alone.
  EXPECT_EQ(plan(4, 1000, 8, 2).tasks, 1);
  EXPECT_GT(plan(1000, 1000, 8, 2).rows_per_task, 1);
  // Narrow rows are done as many at once as a vector has lanes; there is no such way for 64-bit
  // elements.
  EXPECT_EQ(plan(1000, 64, 8, 2).way, Way::kNarrow);
  EXPECT_EQ(plan(1000, 64, 8, 2).rows_per_task % 8, 0);
  EXPECT_EQ(plan(1000, 64, 8, 2, DType::kI8).rows_per_task % 16, 0);
  EXPECT_EQ(plan(1000, 64, 8, 2, DType::kI64).way, Way::kRows);
  EXPECT_EQ(plan(1000, 257, 8, 2).way, Way::kRows);
  EXPECT_EQ(PlanTopKExecution(1000, 257, 8, DType::kF32, 2, 16).way, Way::kRows);
  EXPECT_EQ(plan(0, 64, 8, 2).tasks, 0);
}

TEST(PlanExecution, EveryRowIsInOneTask) {
  for (const int64_t rows : {0, 1, 2, 7, 8, 9, 63, 64, 65, 1000}) {
    for (const int64_t n : {1, 16, 256, 257, 5000, 201088}) {
      for (const int threads : {1, 2, 3, 64}) {
        for (const DType dtype : {DType::kI8, DType::kBF16, DType::kF32, DType::kU64}) {
          const TopKExecution plan =
              PlanTopKExecution(rows, n, std::min<int64_t>(n, 64), dtype, threads);
          if (plan.way == TopKExecution::Way::kSplit) {
            EXPECT_EQ(plan.tasks, rows * threads);
            continue;
          }
          EXPECT_GE(plan.tasks * plan.rows_per_task, rows);
          EXPECT_LT((plan.tasks - 1) * plan.rows_per_task, std::max<int64_t>(rows, 1));
        }
      }
    }
  }
}

TEST(PlanExecution, RefusesWhatNoCallHas) {
  const auto fails = [](int64_t rows, int64_t n, int64_t k, int threads, int bytes = 64) {
    try {
      PlanTopKExecution(rows, n, k, DType::kF32, threads, bytes);
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_TRUE(fails(-1, 10, 1, 1));
  EXPECT_TRUE(fails(1, 0, 1, 1));
  EXPECT_TRUE(fails(1, 10, 11, 1));
  EXPECT_TRUE(fails(1, 10, 1, 0));
  EXPECT_TRUE(fails(1, 10, 1, 1, 48));
  EXPECT_FALSE(fails(1, 10, 10, 1, 16));
}

}  // namespace
}  // namespace riffle::test
