// Everything else is compared with the reference; here the reference is compared with examples made
// by hand, and with the compiler's own arithmetic.
#include "testing/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "testing/buffers.h"

namespace riffle::test {
namespace {

double DecodeHalf(DType dtype, uint16_t bits) { return Decode(dtype, &bits); }

TEST(Reference, DecodesKnownElements) {
  EXPECT_EQ(DecodeHalf(DType::kF16, 0x3c00), 1.0);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0xc000), -2.0);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0x7bff), 65504.0);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0x3555), 0.333251953125);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0x0001), 0x1p-24);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0x0400), 0x1p-14);
  EXPECT_EQ(DecodeHalf(DType::kF16, 0xfc00), -INFINITY);
  EXPECT_TRUE(std::isnan(DecodeHalf(DType::kF16, 0x7c01)));
  EXPECT_EQ(DecodeHalf(DType::kBF16, 0x3f80), 1.0);
  EXPECT_EQ(DecodeHalf(DType::kBF16, 0x4049), 3.140625);
  EXPECT_EQ(DecodeHalf(DType::kBF16, 0x8001), -0x1p-133);
  EXPECT_EQ(DecodeHalf(DType::kBF16, 0x7f80), INFINITY);
  EXPECT_TRUE(std::isnan(DecodeHalf(DType::kBF16, 0xffff)));
  EXPECT_TRUE(std::signbit(DecodeHalf(DType::kBF16, 0x8000)));
}

TEST(Reference, DecodesAsTheMachineDoes) {
  Rng rng(1);
  for (int i = 0; i < 100000; ++i) {
    const auto bits = static_cast<uint32_t>(rng.Next());
    const auto value = std::bit_cast<float>(bits);
    if (!std::isnan(value)) {
      ASSERT_EQ(Decode(DType::kF32, &bits), static_cast<double>(value)) << std::hex << bits;
    }
  }
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = std::bit_cast<float>(bits << 16);
    const double decoded = DecodeHalf(DType::kBF16, static_cast<uint16_t>(bits));
    ASSERT_TRUE(std::isnan(value) ? std::isnan(decoded) : decoded == value) << std::hex << bits;
  }
}

TEST(Reference, Order) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(Before(nan, 7, INFINITY, 1));
  EXPECT_TRUE(Before(-nan, 7, INFINITY, 1));
  EXPECT_FALSE(Before(INFINITY, 1, nan, 7));
  EXPECT_TRUE(Before(nan, 1, -nan, 2));
  EXPECT_FALSE(Before(nan, 2, -nan, 1));
  EXPECT_TRUE(Before(-0.0, 1, 0.0, 2));
  EXPECT_FALSE(Before(0.0, 2, -0.0, 1));
  EXPECT_TRUE(Before(2, 9, 1, 1));
  EXPECT_TRUE(Before(-1, 9, -INFINITY, 1));
  EXPECT_FALSE(Before(3, 5, 3, 5));
  EXPECT_FALSE(BeforeAscending(nan, 1, INFINITY, 7));
  EXPECT_TRUE(BeforeAscending(INFINITY, 7, -nan, 1));
  EXPECT_TRUE(BeforeAscending(nan, 1, -nan, 2));
  EXPECT_FALSE(BeforeAscending(0.0, 2, -0.0, 1));
  EXPECT_TRUE(BeforeAscending(-INFINITY, 9, -1, 1));
  EXPECT_FALSE(BeforeAscending(3, 5, 3, 5));
}

TEST(Reference, SelectsByHand) {
  const std::vector<float> x = {1, -0.0f, 5, NAN, 0.0f, 5, -INFINITY, -NAN, INFINITY, 1};
  const MatrixView view{x.data(), DType::kF32, 1, 10, 10};
  EXPECT_EQ(ReferenceTopK(view, 0, 0, 10, 10),
            (std::vector<int32_t>{3, 7, 8, 2, 5, 0, 9, 1, 4, 6}));
  EXPECT_EQ(ReferenceTopK(view, 0, 0, 10, 3), (std::vector<int32_t>{3, 7, 8}));
  EXPECT_EQ(ReferenceTopK(view, 0, 0, 10, 10, false).back(), 7);
  EXPECT_EQ(ReferenceTopK(view, 0, 4, 7, 9), (std::vector<int32_t>{5, 4, 6}));
  EXPECT_TRUE(ReferenceTopK(view, 0, 5, 5, 2).empty());
  EXPECT_EQ(ReferenceTies(view, 0, 1), 2);
  EXPECT_EQ(ReferenceTies(view, 0, 7), 2);
  EXPECT_EQ(ReferenceTies(view, 0, 8), 1);
  EXPECT_EQ(MaxLaneLoad({0, 4, 8, 1, 5}, 4), 3);
}

TEST(Reference, StridesReachTheirRows) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const MatrixView forward{x.data(), DType::kF32, 2, 3, 3};
  EXPECT_EQ(Decode(DType::kF32, ElementAt(forward, 1, 2)), 6);
  const MatrixView backward{x.data() + 3, DType::kF32, 2, 3, -3};
  EXPECT_EQ(Decode(DType::kF32, ElementAt(backward, 1, 0)), 1);
}

// Properties of the distributions that no other test would miss.
TEST(Distributions, AreWhatTheyAreCalled) {
  const auto row = [](Distribution distribution, DType dtype) {
    Input input({distribution, dtype, 1, 2000, 2000, 20, 0, true, 3});
    std::vector<double> values;
    for (int64_t i = 0; i < 2000; ++i) {
      values.push_back(Decode(dtype, ElementAt(input.view(), 0, i)));
    }
    return values;
  };
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t which = 0; which < 8; ++which) {
      const uint32_t bits = NaN(dtype, which);
      EXPECT_TRUE(std::isnan(Decode(dtype, &bits))) << which;
    }
    const uint32_t inf = MinusInf(dtype);
    EXPECT_EQ(Decode(dtype, &inf), -INFINITY);
    for (const float value : {1.0f, -2.5f, 0.0f, 0x1p-24f, -0x1p-20f, 1024.0f}) {
      const uint32_t bits = Encode(dtype, value);
      EXPECT_EQ(Decode(dtype, &bits), value);
    }
    const auto logs = row(Distribution::kLogProbs, dtype);
    EXPECT_LT(*std::ranges::max_element(logs), 0);
    const auto few = row(Distribution::kFewPositive, dtype);
    EXPECT_LT(std::ranges::count_if(few, [](double v) { return v >= 0; }), 20);
    const auto nans = row(Distribution::kFewNaN, dtype);
    const auto count = std::ranges::count_if(nans, [](double v) { return std::isnan(v); });
    EXPECT_GE(count, 1);
    EXPECT_LE(count, 3);
    const auto tiny = row(Distribution::kDenormals, dtype);
    const double normal = dtype == DType::kF16 ? 0x1p-14 : 0x1p-126;
    EXPECT_TRUE(std::ranges::all_of(tiny, [=](double v) { return std::abs(v) < normal; }));
    const auto zeros = row(Distribution::kSignedZeros, dtype);
    EXPECT_LT(std::ranges::count_if(zeros, [](double v) { return v > 0; }), 20);
    EXPECT_GT(std::ranges::count(zeros, 0.0), 1000);
    EXPECT_TRUE(std::ranges::is_sorted(row(Distribution::kAscending, dtype)));
    const auto hot = row(Distribution::kHotBucket, dtype);
    EXPECT_EQ(std::ranges::count_if(hot, [](double v) { return v > 40; }), 20);
  }
}

}  // namespace
}  // namespace riffle::test
