// Rows of so many columns that the nucleus is searched through a window, against a full sort in
// double: what is kept, what is drawn, and that neither depends on threads or on the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "riffle/error.h"
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
  constexpr int64_t kDraws = kSlow ? 40 : 300;
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

// The columns that an estimate looks at are the first 512 of every 4096. What is in no such run
// comes as a surprise to the pass.
TEST(NucleusSearch, MassWhereTheEstimateDoesNotLook) {
  Rng rng(37);
  constexpr int64_t n = 40000;
  const auto place = [](int64_t i) {
    return static_cast<size_t>(i / 64 * 4096 + 600 + i % 64 * 7);
  };
  for (const auto& [deviation, columns, at] : {std::tuple{1.0, 1, 12.0},
                                               {1.0, 1, 90.0},
                                               {1.0, 1, 3e38},
                                               {2.5, 5, 14.0},
                                               {0.5, 500, 6.0},
                                               {0.0, 300, 4.0},
                                               {3.0, 20, 18.0}}) {
    std::vector<float> x = MakeRow({deviation, 0, 0}, n, rng);
    for (int64_t i = 0; i < columns; ++i)
      x[place(i)] = static_cast<float>(at - 0.001 * static_cast<double>(i % 7));
    for (const float top_p : {0.05f, 0.9f, 0.99f}) {
      SCOPED_TRACE(Concat(deviation, " ", columns, " at ", at, " top_p=", top_p));
      ExpectExact(x, top_p, 0);
    }
  }
  // Most of the mass is in the last fifth, which is flat and has half of its columns unseen.
  std::vector<float> x = MakeRow({1, 0, 0}, n, rng);
  for (size_t i = 32768 + 512; i < x.size(); ++i) x[i] = 9 + static_cast<float>(i % 100) / 400;
  ExpectExact(x, 0.95f, 0);
  ExpectExact(x, 0.2f, 0);
}

// All columns that are looked at are -inf, or all values are equal but for a few.
TEST(NucleusSearch, NothingToEstimateFrom) {
  Rng rng(41);
  constexpr int64_t n = 20000;
  std::vector<float> x = MakeRow({2, 0, 0}, n, rng);
  for (size_t i = 0; i < x.size(); i += 4096) {
    std::fill_n(x.begin() + static_cast<int64_t>(i), std::min<size_t>(512, x.size() - i), -kInf);
  }
  ExpectExact(x, 0.9f, 0);
  std::fill(x.begin(), x.end(), 2.5f);
  ExpectExact(x, 0.5f, 0);
  x[777] = 2.6f;
  x[5000] = 2.4f;
  ExpectExact(x, 0.00001f, 0);
  ExpectExact(x, 0.9f, 0.99f);
  std::fill(x.begin(), x.end(), -3.4e38f);
  x[19999] = 3.4e38f;
  ExpectExact(x, 0.9f, 0);
  x[4097] = 3.4e38f;
  ExpectExact(x, 0.9f, 1);
}

// Values of which thousands are equal, as those of bf16 are, with the end of the nucleus among
// them; masked columns as engines write them.
TEST(NucleusSearch, TiesAtTheEndAndMaskedColumns) {
  Rng rng(43);
  for (const double step : {0.03125, 0.25, 2.0, 8.0}) {
    std::vector<float> x = MakeRow({3, 40, 9, step}, 30011, rng);
    for (size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? -1e9f : -3.4028235e38f;
    for (const float top_p : {1e-6f, 0.3f, 0.95f, 0.9999f, 0.99999994f}) {
      SCOPED_TRACE(Concat("step ", step, " top_p=", top_p));
      ExpectExact(x, top_p, 0);
      ExpectExact(x, top_p, 0.05f);
    }
  }
}

// A NaN or +inf that only the pass meets, in every block and at the end of the row.
TEST(NucleusSearch, WhatIsNotFiniteIsMetAnywhere) {
  Rng rng(47);
  const std::vector<float> row = MakeRow({3, 0, 0}, 16399, rng);
  const float top_p = 0.95f;
  for (const size_t at : {size_t{5}, size_t{700}, size_t{4095}, size_t{9000}, size_t{16398}}) {
    std::vector<float> x = row;
    for (const float sign : {1.0f, -1.0f}) {
      x[at] = std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
      int32_t token[1] = {7};
      SampleOptions options{.top_p = {&top_p, 1}, .on_invalid = InvalidRow::kToken};
      Sample(View(x.data(), 1, 16399), token, options);
      EXPECT_EQ(token[0], -1) << at;
      options.on_invalid = InvalidRow::kThrow;
      EXPECT_THROW(Sample(View(x.data(), 1, 16399), token, options), Error);
    }
    x[at] = kInf;
    int32_t token[1] = {7};
    Sample(View(x.data(), 1, 16399), token, {.top_p = {&top_p, 1}});
    EXPECT_EQ(token[0], static_cast<int32_t>(at));
  }
}

// From the lowest temperatures, where only equals of the best column weigh, to the highest.
TEST(NucleusSearch, Temperatures) {
  Rng rng(53);
  const std::vector<float> x = MakeRow({2, 0, 0, 0.0625}, 20001, rng);
  const float top_p = 0.9f;
  std::vector<int64_t> position(200);
  for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int64_t>(i);
  for (const float temperature : {1e-45f, 1e-38f, 1e-30f, 1e-6f, 0.1f, 30.0f, 1e20f, 0x1p99f,
                                  0x1p100f, std::numeric_limits<float>::max()}) {
    const ExactDistribution exact =
        ReferenceDistribution(View(x.data(), 1, 20001), 0, {temperature, 0, top_p, 0});
    std::vector<int32_t> tokens(position.size());
    Sample({x.data(), DType::kF32, 200, 20001, 0}, tokens,
           {.temperature = {&temperature, 1}, .top_p = {&top_p, 1}, .position = position});
    for (const int32_t token : tokens) {
      const auto end = exact.columns.begin() + exact.most;
      EXPECT_NE(std::find(exact.columns.begin(), end, token), end) << temperature;
    }
  }
}

}  // namespace
}  // namespace riffle::test
