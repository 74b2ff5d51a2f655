// ApplyTopKTopP against a full sort in double, and beside Sample: what it leaves is what may be
// drawn.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "riffle/error.h"
#include "riffle/runtime.h"
#include "riffle/sampling.h"
#include "testing/error_check.h"
#include "testing/reference.h"
#include "testing/sampling_reference.h"
#include "testing/targets.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Filters {
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;

  bool any(int64_t n) const { return (top_k > 0 && top_k < n) || top_p < 1 || min_p > 0; }
};

constexpr Filters kFilters[] = {{},           {20, 1, 0},        {0, 0.9f, 0},       {0, 0.3f, 0},
                                {0, 1, 0.1f}, {50, 0.8f, 0.1f},  {1500, 0.99f, 0},   {1, 0.5f, 0},
                                {0, 0, 0},    {0, 0.97f, 0.01f}, {0, 0.99999994f, 0}};

std::vector<float> RowOf(const MatrixView& x, int64_t row) {
  std::vector<float> values(static_cast<size_t>(x.cols));
  std::memcpy(values.data(), ElementAt(x, row, 0), values.size() * sizeof(float));
  return values;
}

std::vector<float> Applied(std::vector<float> row, const Filters& f) {
  const auto n = static_cast<int64_t>(row.size());
  ApplyTopKTopP({row.data(), n}, 1, n,
                {.top_k = {&f.top_k, 1}, .top_p = {&f.top_p, 1}, .min_p = {&f.min_p, 1}});
  return row;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void ExpectExact(const Input& input, const Filters& f) {
  SCOPED_TRACE(
      Concat(Describe(input.spec()), " | top_k=", f.top_k, " top_p=", f.top_p, " min_p=", f.min_p));
  const std::vector<float> x = RowOf(input.view(), 0);
  const std::vector<float> y = Applied(x, f);
  if (!f.any(input.view().cols)) {
    EXPECT_TRUE(SameBits(x, y));
    return;
  }
  const ExactDistribution exact =
      ReferenceDistribution(input.view(), 0, {1, f.top_k, f.top_p, f.min_p});
  for (int64_t i = 0; i < input.view().cols; ++i) {
    const auto column = static_cast<size_t>(exact.columns[static_cast<size_t>(i)]);
    const bool kept = std::bit_cast<uint32_t>(y[column]) == std::bit_cast<uint32_t>(x[column]);
    ASSERT_TRUE(kept || y[column] == -kInf) << "column " << column << " has become " << y[column];
    // A column whose weight underflows may be on either side of a nucleus that holds all mass.
    const bool weighs = exact.weights[static_cast<size_t>(i)] > 1e-37;
    if (i < exact.least && weighs) {
      ASSERT_TRUE(kept) << "column " << column << ", number " << i;
    } else if (i >= exact.most && x[column] != -kInf) {
      ASSERT_FALSE(kept) << "column " << column << ", number " << i;
    }
  }
}

TEST(ApplyTopKTopP, KeepsWhatAFullSortKeeps) {
  OnEveryTarget([](const std::string&) {
    for (const Distribution distribution :
         {Distribution::kNormal, Distribution::kTies, Distribution::kAllEqual,
          Distribution::kInfinities, Distribution::kSignedZeros, Distribution::kMostlyMinusInf,
          Distribution::kDenormals, Distribution::kAscending}) {
      for (const int64_t n : {1, 15, 300, 1025, 4011}) {
        const Input input({distribution, DType::kF32, 1, n, n, 8, 0, true, 13});
        for (const Filters& f : kFilters) ExpectExact(input, f);
      }
    }
  });
}

// What is drawn is kept; and whoever draws from what is kept without filters draws the same mass.
TEST(ApplyTopKTopP, KeepsWhatSampleDraws) {
  constexpr int64_t kDraws = 400;
  for (const int64_t n : {100, 1000, 3000, 20000}) {
    const Input input({Distribution::kNormal, DType::kF32, 1, n, n, 8, 0, true, 5});
    std::vector<int64_t> position(kDraws);
    for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int64_t>(i);
    for (const Filters& f : kFilters) {
      const std::vector<float> y = Applied(RowOf(input.view(), 0), f);
      MatrixView repeated = input.view();
      repeated.rows = kDraws;
      repeated.row_stride = 0;
      std::vector<int32_t> tokens(kDraws);
      Sample(repeated, tokens,
             {.top_k = {&f.top_k, 1},
              .top_p = {&f.top_p, 1},
              .min_p = {&f.min_p, 1},
              .position = position});
      for (const int32_t token : tokens) ASSERT_NE(y[static_cast<size_t>(token)], -kInf);
    }
  }
}

// Rows of any stride, any number of threads, filters of their own: each as if it were alone. What
// lies between the rows is not touched.
TEST(ApplyTopKTopP, OnlyTheRowMatters) {
  constexpr int64_t kRows = 11, n = 3001, kStride = 3010;
  const Input input({Distribution::kNormal, DType::kF32, kRows, n, kStride, 8, 0, true, 3});
  std::vector<int32_t> top_k;
  std::vector<float> top_p, min_p;
  for (const Filters& f : kFilters) {
    top_k.push_back(f.top_k);
    top_p.push_back(f.top_p);
    min_p.push_back(f.min_p);
  }
  ASSERT_EQ(top_k.size(), static_cast<size_t>(kRows));
  OnEveryTarget([&](const std::string&) {
    for (const int threads : {1, 2, 3}) {
      for (const bool backwards : {false, true}) {
        std::vector<float> memory(kRows * kStride, 7);
        const auto row_at = [&](int64_t row) {
          return memory.data() + (backwards ? kRows - 1 - row : row) * kStride;
        };
        for (int64_t row = 0; row < kRows; ++row) {
          const std::vector<float> values = RowOf(input.view(), row);
          std::copy(values.begin(), values.end(), row_at(row));
        }
        ApplyTopKTopP({row_at(0), backwards ? -kStride : kStride}, kRows, n,
                      {.top_k = top_k, .top_p = top_p, .min_p = min_p, .pool = &PoolOf(threads)});
        for (int64_t row = 0; row < kRows; ++row) {
          const std::vector<float> alone =
              Applied(RowOf(input.view(), row), kFilters[static_cast<size_t>(row)]);
          EXPECT_TRUE(SameBits(alone, std::vector<float>(row_at(row), row_at(row) + n))) << row;
          for (int64_t i = n; i < kStride; ++i) ASSERT_EQ(row_at(row)[i], 7);
        }
      }
    }
  });
}

TEST(ApplyTopKTopP, RowsWithoutAnAnswerStay) {
  constexpr int64_t kRows = 4, n = 2000;
  for (const Filters& f : kFilters) {
    std::vector<float> x(kRows * n, 1);
    for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(3 * n + i)] = static_cast<float>(i) / 99;
    std::fill_n(x.begin() + n, n, -kInf);
    x[2 * n + 77] = kNaN;
    const std::vector<float> before = x;
    ApplyTopKTopP({x.data(), n}, kRows, n,
                  {.top_k = {&f.top_k, 1}, .top_p = {&f.top_p, 1}, .min_p = {&f.min_p, 1}});
    EXPECT_EQ(std::memcmp(x.data() + n, before.data() + n, 2 * n * sizeof(float)), 0);
    const std::vector<float> last(before.begin() + 3 * n, before.end());
    EXPECT_TRUE(SameBits(Applied(last, f), std::vector<float>(x.begin() + 3 * n, x.end())));
  }
}

TEST(ApplyTopKTopP, Errors) {
  std::vector<float> x(30, 1);
  const std::vector<float> before = x;
  const auto expect = [&](Code code, const std::vector<std::string>& words,
                          const FilterOptions& options, int64_t rows, int64_t n, int64_t stride) {
    ExpectError(code, words, [&] { ApplyTopKTopP({x.data(), stride}, rows, n, options); });
    EXPECT_EQ(x, before);
  };
  const int32_t minus = -1;
  const float above = 1.5f;
  const float two[] = {0.5f, 0.5f};
  expect(Code::kBadOption, {"top_k[0]", "-1"}, {.top_k = {&minus, 1}}, 3, 10, 10);
  expect(Code::kBadOption, {"top_p[0]", "1.5"}, {.top_p = {&above, 1}}, 3, 10, 10);
  expect(Code::kBadOption, {"min_p[0]", "1.5"}, {.min_p = {&above, 1}}, 3, 10, 10);
  expect(Code::kBadShape, {"top_p", "2", "3"}, {.top_p = two}, 3, 10, 10);
  expect(Code::kBadShape, {"logits", "columns"}, {}, 3, 0, 10);
  expect(Code::kOverlap, {"rows of logits", "stride of 9"}, {}, 3, 10, 9);
  expect(Code::kOverlap, {"logits", "top_p"}, {.top_p = {x.data() + 3, 1}}, 3, 10, 10);
  EXPECT_NO_THROW(ApplyTopKTopP({nullptr, 5}, 0, 5));
}

}  // namespace
}  // namespace riffle::test
