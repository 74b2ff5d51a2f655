// Rows of so many columns that the nucleus is searched through a window, against a full sort in
// double: what is kept, what is drawn, and that neither depends on threads or on the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "riffle/sampling.h"
#include "testing/rng.h"
#include "testing/sampling_reference.h"
#include "testing/targets.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// What rows look like: a bell of a width, and some columns above it.
struct Shape {
  double deviation;
  int64_t high;  // how many
  double at;
  double step = 0;  // values are multiples of it
};
constexpr Shape kShapes[] = {{3, 0, 0},      {2.5, 8, 16},    {2.5, 200, 14},   {2.5, 8, 22},
                             {1, 0, 0},      {0.01, 0, 0},    {4, 3, 30},       {0, 0, 0},
                             {1, 0, 0, 0.5}, {0, 900, 8},     {3, 0, 0, 0.125}, {8, 0, 0},
                             {1, 1, 300},    {0.5, 5000, 2.5}};

std::vector<float> MakeRow(const Shape& shape, int64_t n, Rng& rng) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) {
    double sum = 0;  // close to normal
    for (int i = 0; i < 12; ++i) sum += rng.Unit();
    double wide = (sum - 6) * shape.deviation;
    wide = shape.step > 0 ? std::round(wide / shape.step) * shape.step : wide;
    value = static_cast<float>(wide);
  }
  for (int64_t i = 0; i < shape.high; ++i) {
    x[static_cast<size_t>(rng.Below(static_cast<uint64_t>(n)))] =
        static_cast<float>(shape.at + rng.Unit());
  }
  return x;
}

void ExpectExact(const std::vector<float>& x, float top_p, float min_p) {
  const auto n = static_cast<int64_t>(x.size());
  const ExactDistribution exact =
      ReferenceDistribution(View(x.data(), 1, n), 0, {1, 0, top_p, min_p});
  std::vector<float> y = x;
  ApplyTopKTopP({y.data(), n}, 1, n, {.top_p = {&top_p, 1}, .min_p = {&min_p, 1}});
  for (int64_t i = 0; i < n; ++i) {
    const auto column = static_cast<size_t>(exact.columns[static_cast<size_t>(i)]);
    if (i < exact.least && exact.weights[static_cast<size_t>(i)] > 1e-37) {
      ASSERT_EQ(y[column], x[column]) << "number " << i << " of " << exact.kept;
    } else if (i >= exact.most) {
      ASSERT_EQ(y[column], -kInf) << "number " << i << " of " << exact.kept;
    }
  }
  constexpr int64_t kDraws = 300;
  std::vector<int64_t> position(kDraws);
  for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int64_t>(i);
  std::vector<int32_t> tokens(kDraws), others(kDraws);
  std::vector<float> logprobs(kDraws);
  const MatrixView repeated{x.data(), DType::kF32, kDraws, n, 0};
  SampleOptions options{
      .top_p = {&top_p, 1}, .min_p = {&min_p, 1}, .position = position, .pool = &PoolOf(3)};
  const int64_t stream = 4;
  options.stream = {&stream, 1};
  Sample(repeated, tokens, options);
  for (const int32_t token : tokens) ASSERT_NE(y[static_cast<size_t>(token)], -kInf);
  if (exact.least == exact.most) {
    EXPECT_LT(ChiSquaredExcess(exact, tokens), 0);
  }
  options.pool = &PoolOf(1);
  Sample(repeated, others, logprobs, options);
  EXPECT_EQ(tokens, others);
  const double truth = ReferenceLogProb(View(x.data(), 1, n), 0, tokens[0]);
  EXPECT_NEAR(static_cast<double>(logprobs[0]), truth, 1e-6 * (1 + std::abs(truth)));
}

TEST(NucleusSearch, IsExactForRowsOfAllShapes) {
  Rng rng(23);
  for (const Shape& shape : kShapes) {
    for (const float top_p : {0.95f, 0.5f, 0.999f}) {
      const int64_t n = rng.Between(16384, 60000);
      SCOPED_TRACE(Concat("n=", n, " deviation=", shape.deviation, " high=", shape.high, " at ",
                          shape.at, " step ", shape.step, " top_p=", top_p));
      ExpectExact(MakeRow(shape, n, rng), top_p, 0);
    }
  }
}

TEST(NucleusSearch, OnEveryTarget) {
  Rng rng(29);
  const std::vector<float> wide = MakeRow({2, 0, 0}, 20011, rng);
  const std::vector<float> peaked = MakeRow({2, 300, 8}, 20011, rng);
  OnEveryTarget([&](const std::string& target) {
    SCOPED_TRACE(target);
    ExpectExact(wide, 0.9f, 0);
    ExpectExact(wide, 0.9f, 0.02f);
    ExpectExact(peaked, 0.97f, 0);
  });
}

// What is last in its row, in a block or in a window must not be lost; nor what is not finite.
TEST(NucleusSearch, InfinitiesAndMassAtTheEnd) {
  Rng rng(31);
  std::vector<float> x = MakeRow({1, 0, 0}, 16385, rng);
  x.back() = 12;
  ExpectExact(x, 0.9f, 0);
  std::fill(x.begin(), x.begin() + 16000, -kInf);
  ExpectExact(x, 0.999f, 0);
  x[7] = x[9000] = kInf;
  ExpectExact(x, 0.9f, 0);
}

}  // namespace
}  // namespace riffle::test
