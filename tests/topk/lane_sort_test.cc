// Lane sort on every SIMD target: rows that are hard for its lanes, its certificate in the order
// (value, column), and its depth compared with the true largest load of a lane.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "riffle/topk.h"
#include "testing/buffers.h"
#include "testing/reference.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A row of the given values in any dtype.
struct Values {
  DType dtype;
  int64_t n;
  std::vector<uint8_t> bytes;

  Values(DType row_dtype, const std::vector<float>& values)
      : dtype(row_dtype),
        n(static_cast<int64_t>(values.size())),
        bytes(values.size() * SizeOf(row_dtype)) {
    for (size_t i = 0; i < values.size(); ++i) {
      Set(static_cast<int64_t>(i), Encode(dtype, values[i]));
    }
  }
  void Set(int64_t i, uint32_t bits) {
    Store(dtype, bits, bytes.data() + static_cast<size_t>(i) * SizeOf(dtype));
  }
  MatrixView view() const { return {bytes.data(), dtype, 1, n, n}; }
};

struct Answer {
  std::vector<int32_t> indices;
  std::vector<uint8_t> values;
  TopKStats stats;
};

Answer LaneSort(const Values& row, int64_t k, int lanes, const std::vector<int>& schedule) {
  const auto count = static_cast<size_t>(k);
  Answer answer{std::vector<int32_t>(count), std::vector<uint8_t>(count * SizeOf(row.dtype)), {}};
  TopKOptions options;
  options.algorithm = Algorithm::kLaneSort;
  options.lanes = lanes;
  options.depth_schedule = schedule;
  options.pool = &PoolOf(1);
  TopK(row.view(), k, {answer.values.data(), k, answer.indices.data(), k, &answer.stats}, options);
  return answer;
}

// Checks the answer, the depth at which `schedule` must end, and how much was read. Empty if right.
std::string Fault(const Values& row, int64_t k, int lanes, const std::vector<int>& schedule) {
  const MatrixView x = row.view();
  const std::vector<int32_t> best = ReferenceTopK(x, 0, 0, row.n, k);
  const Answer answer = LaneSort(row, k, lanes, schedule);
  const std::string what = Concat("on ", Target(), ", ", Name(row.dtype), " n=", row.n, " k=", k,
                                  " lanes=", lanes, ": ");
  if (answer.indices != best) {
    const auto at = std::ranges::mismatch(answer.indices, best);
    return Concat(what, "place ", at.in1 - answer.indices.begin(), " is column ", *at.in1,
                  ", should be ", *at.in2);
  }
  for (size_t i = 0; i < best.size(); ++i) {
    const size_t width = SizeOf(row.dtype);
    if (std::memcmp(&answer.values[i * width], ElementAt(x, 0, best[i]), width) != 0) {
      return Concat(what, "value ", i, " differs from column ", best[i]);
    }
  }
  const int64_t load = MaxLaneLoad(best, lanes);
  int64_t passes = 1;
  int64_t depth = schedule.front();
  for (; depth - 1 < load; ++passes) {
    depth = static_cast<size_t>(passes) < schedule.size() ? schedule[static_cast<size_t>(passes)]
                                                          : 2 * depth;
  }
  if (answer.stats.depth != depth - 1) {
    return Concat(what, "depth ", answer.stats.depth, ", should be ", depth - 1, " for a load of ",
                  load);
  }
  if (answer.stats.elements_examined != (passes - 1) * row.n) {
    return Concat(what, "examined ", answer.stats.elements_examined, " in ", passes, " passes");
  }
  return "";
}

std::string FaultOnTargets(const Values& row, int64_t k, int lanes,
                           const std::vector<int>& schedule) {
  std::string fault;
  for (const std::string& target : Targets()) {
    SetTarget(target);
    fault = Fault(row, k, lanes, schedule);
    if (!fault.empty()) break;
  }
  SetTarget("");
  return fault;
}

// With every depth in the schedule, the reported depth is the largest load of a lane.
std::vector<int> EveryDepth(int64_t k) {
  std::vector<int> schedule(static_cast<size_t>(k) + 1);
  std::iota(schedule.begin(), schedule.end(), 1);
  return schedule;
}

std::vector<float> Normal(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) {  // near enough
    value = static_cast<float>(rng.Unit() + rng.Unit() + rng.Unit() + rng.Unit() - 2);
  }
  return values;
}

// Rows of so few values that ties decide everywhere: what is kept, the pivot and the certificate
// must follow the order of columns.
TEST(LaneSort, EveryRowOfThreeValues) {
  constexpr int kColumns = 6;
  std::vector<float> values(kColumns);
  for (int code = 0; code < 729; ++code) {
    for (int i = 0, rest = code; i < kColumns; ++i, rest /= 3) {
      values[static_cast<size_t>(i)] = static_cast<float>(rest % 3 - 1);
    }
    const Values row(kDTypes[code % 3], values);
    for (const int lanes : {2, 4}) {
      for (int64_t k = 1; k <= kColumns; ++k) {
        ASSERT_EQ(Fault(row, k, lanes, EveryDepth(k)), "");
      }
    }
  }
}

// The same for rows that fill vectors, where ties are found by whole vectors.
TEST(LaneSort, FewValuesInManyLanes) {
  Rng rng(3);
  for (int run = 0; run < 60; ++run) {
    const int64_t n = rng.Between(1, 2500);
    const int64_t kinds = rng.Between(1, 5);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = static_cast<float>(rng.Below(kinds) - 2);
    const Values row(rng.Pick(kDTypes), values);
    const int lanes = 1 << rng.Between(0, 7);
    const int64_t k = rng.Between(1, std::min<int64_t>(n, 4 * lanes));
    ASSERT_EQ(FaultOnTargets(row, k, lanes, EveryDepth(k)), "");
  }
}

TEST(LaneSort, EveryKOfShortRows) {
  for (const int64_t n : {1, 2, 3, 17, 40, 129}) {
    for (const DType dtype : kDTypes) {
      const Values row(dtype, Normal(n, static_cast<uint64_t>(n)));
      for (int lanes = 1; lanes <= 256; lanes *= 4) {
        for (int64_t k = 1; k <= n; ++k) {
          ASSERT_EQ(FaultOnTargets(row, k, lanes, {2, 3}), "");
        }
      }
    }
  }
}

TEST(LaneSort, EveryNumberOfLanes) {
  for (int lanes = 1; lanes <= 4096; lanes *= 2) {
    for (const int64_t n : {4095, 9000}) {
      const Values row(kDTypes[lanes % 3], Normal(n, static_cast<uint64_t>(lanes)));
      for (const int64_t k : {1, 12, 64, 130}) {
        const int first = static_cast<int>(k / lanes) + 2;
        ASSERT_EQ(FaultOnTargets(row, k, lanes, {first, first + 2, first + 9}), "");
      }
    }
  }
}

// All k best elements are in one lane: at the beginning, spread out, or at the very end, where the
// columns past the last multiple of the lanes are.
TEST(LaneSort, AllInOneLane) {
  constexpr int kLanes = 128;
  for (const DType dtype : kDTypes) {
    for (const int64_t n : {int64_t{128} * 70 + 1, int64_t{20011}}) {
      for (const int lane : {0, 42, 127}) {
        for (const bool at_end : {false, true}) {
          const int64_t k = 64;
          std::vector<float> values = Normal(n, static_cast<uint64_t>(lane));
          const int64_t last = (n - 1 - lane) / kLanes * kLanes + lane;
          for (int64_t i = 0; i < k; ++i) {
            const int64_t column = at_end ? last - i * kLanes : lane + i * kLanes;
            values[static_cast<size_t>(column)] = static_cast<float>(100 + i % 50);
          }
          const Values row(dtype, values);
          ASSERT_EQ(MaxLaneLoad(ReferenceTopK(row.view(), 0, 0, n, k), kLanes), k);
          ASSERT_EQ(FaultOnTargets(row, k, kLanes, {2, 5, 9}), "");
          ASSERT_EQ(FaultOnTargets(row, k, kLanes, {65}), "");
          ASSERT_EQ(FaultOnTargets(row, k, kLanes, {64, 65}), "");
        }
      }
    }
  }
}

// Negative NaNs anywhere: as integers their bits are below everything that passes a floor.
TEST(LaneSort, NaNAboveTheFloor) {
  constexpr int64_t kColumns = 30011;
  for (const DType dtype : kDTypes) {
    const std::vector<float> values = Normal(kColumns, 11);
    for (const int64_t column : {0, 127, 7000, 8000, 15001, 29999, 30010}) {
      Values row(dtype, values);
      row.Set(column, SignBit(dtype) | NaN(dtype, 0));
      row.Set(12345, NaN(dtype, 1));
      ASSERT_EQ(FaultOnTargets(row, 20, 128, {2, 4, 8}), "");
      ASSERT_EQ(LaneSort(row, 20, 128, {4}).indices[0], std::min<int64_t>(column, 12345));
    }
  }
}

// No element is above -inf, and yet the answer must name columns.
TEST(LaneSort, MinusInfinity) {
  for (const DType dtype : kDTypes) {
    for (const int64_t finite : {0, 3}) {
      std::vector<float> values(5000, -std::numeric_limits<float>::infinity());
      for (int64_t i = 0; i < finite; ++i) values[static_cast<size_t>(4000 + 7 * i)] = -5;
      ASSERT_EQ(FaultOnTargets(Values(dtype, values), 300, 128, {3, 4}), "");
    }
  }
}

// Positive and negative values and both, rising and falling. A floor above zero compares raw bits,
// one below compares order keys, and rising rows replace elements of all lanes at every vector.
TEST(LaneSort, Floors) {
  constexpr int64_t kColumns = 24000;
  for (const DType dtype : kDTypes) {
    for (const float shift : {-50.0f, 0.0f, 50.0f}) {
      for (const int order : {0, 1, 2}) {
        std::vector<float> values = Normal(kColumns, 5);
        for (float& value : values) value = 10 * value + shift;
        if (order == 1) std::ranges::sort(values);
        if (order == 2) std::ranges::sort(values, std::greater<>());
        const Values row(dtype, values);
        ASSERT_EQ(FaultOnTargets(row, 64, 128, {3, 5, 7}), "");
        ASSERT_EQ(FaultOnTargets(row, 64, 8, {9, 12}), "");
        ASSERT_EQ(FaultOnTargets(row, 1000, 1024, {3, 5}), "");
      }
    }
  }
}

// The k best elements come last and displace everything that was kept before.
TEST(LaneSort, LateArrivals) {
  for (const int64_t n : {8192, 20000}) {
    std::vector<float> values = Normal(n, 9);
    for (int64_t i = 0; i < 200; ++i) values[static_cast<size_t>(n - 200 + i)] = 10;
    for (const DType dtype : kDTypes) {
      const Values row(dtype, values);
      ASSERT_EQ(FaultOnTargets(row, 150, 128, {2, 3, 4}), "");
      ASSERT_EQ(FaultOnTargets(row, 250, 16, {9, 30}), "");
    }
  }
}

// Without a schedule the planner's is used. Its depths increase to one at which the certificate
// always holds.
TEST(LaneSort, PlannedSchedule) {
  for (const int64_t k : {1, 64, 200}) {
    const Values row(DType::kBF16, Normal(30000, static_cast<uint64_t>(k)));
    const std::vector<int> schedule = PlanTopK(row.n, k).depth_schedule;
    const Answer planned = LaneSort(row, k, 128, {});
    const Answer given = LaneSort(row, k, 128, schedule);
    EXPECT_EQ(planned.indices, given.indices);
    EXPECT_EQ(planned.stats.depth, given.stats.depth);
    ASSERT_EQ(Fault(row, k, 128, schedule), "");
  }
}

}  // namespace
}  // namespace riffle::test
