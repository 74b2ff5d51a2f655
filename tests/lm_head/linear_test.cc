// Compares Linear with scalar sums in double on every SIMD target, and tests which bits stay the
// same.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "riffle/linear_topk.h"
#include "testing/linear_case.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16,
                                     WeightFormat::kQ8_0};

class LinearTest : public testing::Test {
 protected:
  ~LinearTest() override { SetTarget(""); }

  static void Check(const LinearSpec& spec) {
    const LinearCase linear(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::string fault;
      const std::vector<float> y = linear.Run(&PoolOf(2), &fault);
      ASSERT_EQ(fault, "") << Describe(spec) << " on " << target;
      ASSERT_EQ(linear.Check(y), "");
    }
  }
};

bool SameBits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

TEST_F(LinearTest, EveryPairOfTypes) {
  for (const DType x : kDTypes) {
    for (const WeightFormat format : kFormats) {
      for (const bool transposed : {false, true}) {
        if (transposed && format == WeightFormat::kQ8_0) continue;
        for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 14, 25, 31}) {
          ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                         .d = 288,
                                         .vocab = 70,
                                         .x_dtype = x,
                                         .format = format,
                                         .transposed = transposed,
                                         .bias = kDTypes[rows % 3]}));
        }
      }
    }
  }
}

TEST_F(LinearTest, Depths) {
  for (const int64_t d : {0,  1,  2,   3,   15,  16,  17,  31,  32,  33,  63,
                          64, 65, 255, 256, 257, 287, 289, 511, 512, 544, 1000}) {
    for (const WeightFormat format : kFormats) {
      if (format == WeightFormat::kQ8_0 && d % 32 != 0) continue;
      for (const int64_t rows : {1, 3, 10}) {
        const DType x = format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16;
        ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                       .d = d,
                                       .vocab = 33,
                                       .x_dtype = x,
                                       .format = format,
                                       .transposed = format != WeightFormat::kQ8_0 && d % 3 == 1}));
      }
    }
  }
}

TEST_F(LinearTest, Vocabularies) {
  for (const int64_t vocab :
       {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 4160}) {
    for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kQ8_0}) {
      for (const bool transposed : {false, true}) {
        if (transposed && format == WeightFormat::kQ8_0) continue;
        ASSERT_NO_FATAL_FAILURE(Check({.rows = 1 + vocab % 3 * 5,
                                       .d = 32,
                                       .vocab = vocab,
                                       .x_dtype = DType::kBF16,
                                       .format = format,
                                       .transposed = transposed,
                                       .bias = DType::kBF16}));
      }
    }
  }
}

TEST_F(LinearTest, StridesAndAlignment) {
  for (const WeightFormat format : kFormats) {
    for (const bool transposed : {false, true}) {
      if (transposed && format == WeightFormat::kQ8_0) continue;
      for (const bool backwards : {false, true}) {
        for (const int shift : {0, 1, 6}) {
          for (const int64_t rows : {1, 2, 11}) {
            ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                           .d = 96,
                                           .vocab = 75,
                                           .x_dtype = kDTypes[shift % 3],
                                           .format = format,
                                           .transposed = transposed,
                                           .bias = DType::kF32,
                                           .x_gap = 5,
                                           .weight_gap = 1 + shift,
                                           .backwards = backwards,
                                           .shift = shift}));
          }
        }
      }
    }
  }
}

TEST_F(LinearTest, Data) {
  for (const LinearData data : kAllLinearData) {
    for (const WeightFormat format : kFormats) {
      for (const int64_t rows : {1, 6, 20}) {
        for (const DType x : {DType::kF32, DType::kBF16}) {
          ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                         .d = 512,
                                         .vocab = 66,
                                         .x_dtype = x,
                                         .format = format,
                                         .bias = DType::kF32,
                                         .data = data}));
        }
      }
    }
  }
}

TEST_F(LinearTest, RoundX) {
  for (const WeightFormat format : kFormats) {
    for (const DType x : {DType::kF32, DType::kF16}) {
      for (const int64_t rows : {1, 9}) {
        ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                       .d = 320,
                                       .vocab = 66,
                                       .x_dtype = x,
                                       .format = format,
                                       .round_x = true}));
      }
    }
  }
}

// The largest sums that f32 can hold, and the smallest that overflow.
TEST_F(LinearTest, Overflow) {
  const float huge = std::numeric_limits<float>::max();
  const float x[] = {1, 1};
  const float w[] = {huge, 0, huge, huge, -huge, -huge, huge, -huge};
  for (const std::string& target : Targets()) {
    SetTarget(target);
    float y[4];
    Linear({x, DType::kF32, 1, 2, 2}, {w, WeightFormat::kF32, 4, 2, 2}, {y, 4});
    EXPECT_EQ(y[0], huge) << target;
    EXPECT_EQ(y[1], std::numeric_limits<float>::infinity()) << target;
    EXPECT_EQ(y[2], -std::numeric_limits<float>::infinity()) << target;
    EXPECT_EQ(y[3], 0.0f) << target;
  }
}

// With a stride of zero all rows share their memory.
TEST_F(LinearTest, StrideZero) {
  const std::vector<float> x(40, 2.0f), w(40, 3.0f);
  std::vector<float> y(3 * 70);
  Linear({x.data(), DType::kF32, 3, 40, 0}, {w.data(), WeightFormat::kF32, 70, 40, 0},
         {y.data(), 70});
  EXPECT_EQ(y, std::vector<float>(3 * 70, 240.0f));
}

// A row's bits do not depend on the rows beside it, the threads, the layout or the strides.
TEST_F(LinearTest, BitsOfARow) {
  for (const WeightFormat format : kFormats) {
    for (const DType x : {DType::kF32, DType::kBF16}) {
      for (const int64_t d : {320, 333}) {
        if (format == WeightFormat::kQ8_0 && d % 32 != 0) continue;
        const LinearSpec spec{
            .rows = 300, .d = d, .vocab = 150, .x_dtype = x, .format = format, .bias = DType::kF32};
        LinearSpec other = spec;
        other.x_gap = 3;
        other.weight_gap = 2;
        other.shift = 2;
        if (format != WeightFormat::kQ8_0) other.transposed = true;
        const LinearCase linear(spec);
        const LinearCase again(other);
        for (const std::string& target : Targets()) {
          SetTarget(target);
          std::string fault;
          const std::vector<float> all = linear.Run(&PoolOf(3), &fault);
          for (const auto& [begin, rows] : std::vector<std::pair<int64_t, int64_t>>{{0, 1},
                                                                                    {7, 2},
                                                                                    {20, 3},
                                                                                    {31, 4},
                                                                                    {40, 5},
                                                                                    {50, 8},
                                                                                    {60, 9},
                                                                                    {70, 12},
                                                                                    {90, 13},
                                                                                    {110, 33},
                                                                                    {0, 257}}) {
            const std::vector<float> part = linear.RunRows(begin, rows, &PoolOf(1));
            ASSERT_TRUE(SameBits(part.data(), all.data() + begin * spec.vocab, part.size()))
                << rows << " rows from " << begin << "; " << Describe(spec) << " on " << target;
          }
          if (!other.transposed) continue;
          const std::vector<float> same = again.RunRows(100, 40, &PoolOf(2));  // same values
          ASSERT_TRUE(SameBits(same.data(), all.data() + 100 * spec.vocab, same.size()))
              << Describe(other) << " on " << target;
        }
      }
    }
  }
}

TEST_F(LinearTest, RoundedXHasTheBitsOfBF16) {
  for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kQ8_0}) {
    LinearSpec spec{.rows = 10, .d = 320, .vocab = 100, .x_dtype = DType::kBF16, .format = format};
    const LinearCase bf16(spec);
    std::vector<float> wide(static_cast<size_t>(spec.rows * spec.d));
    for (size_t i = 0; i < wide.size(); ++i) {  // exact; a little off, so that it must be rounded
      uint16_t bits;
      std::memcpy(&bits, static_cast<const uint8_t*>(bf16.x().data) + 2 * i, 2);
      const uint32_t off = static_cast<uint32_t>(bits) << 16 | (i % 2 == 0 ? 0x7fff : 0);
      std::memcpy(&wide[i], &off, 4);
    }
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::string fault;
      const std::vector<float> expected = bf16.Run(nullptr, &fault);
      std::vector<float> y(expected.size());
      LinearOptions options = bf16.options();
      options.round_x = true;
      Linear({wide.data(), DType::kF32, spec.rows, spec.d, spec.d}, bf16.weight(),
             {y.data(), spec.vocab}, options);
      EXPECT_TRUE(SameBits(y.data(), expected.data(), y.size())) << Name(format) << ' ' << target;
    }
  }
}

// x of f32 is rounded only on request: 1 + 2^-12 times 1 shows it.
TEST_F(LinearTest, F32IsNotRounded) {
  const std::vector<float> x(32, 1.0f + 0x1p-12f);
  std::vector<uint16_t> w(32, 0);
  w[5] = 0x3f80;
  float y = 0;
  for (const std::string& target : Targets()) {
    SetTarget(target);
    Linear({x.data(), DType::kF32, 1, 32, 32}, {w.data(), WeightFormat::kBF16, 1, 32, 32}, {&y, 1});
    EXPECT_EQ(y, x[0]) << target;
    Linear({x.data(), DType::kF32, 1, 32, 32}, {w.data(), WeightFormat::kBF16, 1, 32, 32}, {&y, 1},
           {.round_x = true});
    EXPECT_EQ(y, 1.0f) << target;
  }
}

TEST_F(LinearTest, NoRows) {
  const std::vector<float> w(64, 1.0f);
  Linear({nullptr, DType::kF32, 0, 32, 32}, {w.data(), WeightFormat::kF32, 2, 32, 32},
         {nullptr, 2});
}

}  // namespace
}  // namespace riffle::test
