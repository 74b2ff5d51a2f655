// LinearTopK has the bits of TopK over the result of Linear, on every SIMD target.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

#include "riffle/linear_topk.h"
#include "riffle/topk.h"
#include "testing/linear_case.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

class LinearTopKTest : public testing::Test {
 protected:
  ~LinearTopKTest() override { SetTarget(""); }

  // Empty if both agree and nothing else is written.
  template <typename TIndex>
  static std::string Compare(const LinearCase& linear, const std::vector<float>& y, int64_t k,
                             int threads) {
    constexpr bool kWide = sizeof(TIndex) == 8;
    const LinearSpec& spec = linear.spec();
    const MatrixView logits{y.data(), DType::kF32, spec.rows, spec.vocab, spec.vocab};
    std::vector<float> values(static_cast<size_t>(spec.rows * k));
    std::vector<TIndex> indices(values.size());
    TopK(logits, k, View(values.data(), indices.data(), k));
    Output out_values(spec.rows, k, k + 2, 4, 4);
    Output out_indices(spec.rows, k, -(k + 1), sizeof(TIndex), kWide ? 3 : 0);
    LinearTopK(linear.x(), linear.weight(), k,
               {static_cast<float*>(out_values.data()), out_values.stride(), out_indices.data(),
                out_indices.stride(), kWide ? IndexType::kInt64 : IndexType::kInt32},
               linear.options(&PoolOf(threads)));
    for (int64_t row = 0; row < spec.rows; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        out_values.Expect(row, i, &values[static_cast<size_t>(row * k + i)]);
        out_indices.Expect(row, i, &indices[static_cast<size_t>(row * k + i)]);
      }
    }
    std::string difference = out_values.Difference("values");
    difference += out_indices.Difference("indices");
    return difference.empty() ? ""
                              : Concat(difference, " k=", k, " threads=", threads, "; ",
                                       Describe(spec), " on ", Target());
  }

  static void Check(const LinearSpec& spec, const std::set<int64_t>& ks, int threads) {
    const LinearCase linear(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::string fault;
      const std::vector<float> y = linear.Run(&PoolOf(1), &fault);
      for (const int64_t k : ks) {
        if (k >= 1 && k <= spec.vocab) {
          ASSERT_EQ(Compare<int32_t>(linear, y, k, threads), "");
          ASSERT_EQ(Compare<int64_t>(linear, y, k, threads), "");
        }
      }
    }
  }
};

TEST_F(LinearTopKTest, EveryData) {
  for (const LinearData data : kAllLinearData) {
    for (const WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kQ8_0}) {
      for (const int64_t rows : {1, 3, 14}) {
        ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                       .d = 64,
                                       .vocab = 3000,
                                       .x_dtype = rows == 3 ? DType::kF32 : DType::kBF16,
                                       .format = format,
                                       .data = data},
                                      {1, 64, 700}, static_cast<int>(rows % 4)));
      }
    }
  }
}

TEST_F(LinearTopKTest, Vocabularies) {
  for (const int64_t vocab : {1, 2, 63, 64, 65, 129, 640, 4097}) {
    ASSERT_NO_FATAL_FAILURE(Check({.rows = 2,
                                   .d = 32,
                                   .vocab = vocab,
                                   .x_dtype = DType::kBF16,
                                   .format = WeightFormat::kBF16,
                                   .bias = DType::kF16},
                                  {1, 2, 8, 64, 1000, vocab / 2, vocab - 1, vocab}, 2));
  }
}

// Many chunks, each of which must shorten its lists many times.
TEST_F(LinearTopKTest, LongVocabulary) {
  for (const LinearData data : {LinearData::kNormal, LinearData::kTies, LinearData::kConstant}) {
    ASSERT_NO_FATAL_FAILURE(Check({.rows = 2,
                                   .d = 4,
                                   .vocab = 20000,
                                   .x_dtype = DType::kF32,
                                   .format = WeightFormat::kF32,
                                   .data = data},
                                  {1, 64, 3000, 20000}, 3));
  }
}

// Ascending logits: the logits of every tile are larger than all before.
TEST_F(LinearTopKTest, Ascending) {
  const int64_t vocab = 40000;
  std::vector<float> w(static_cast<size_t>(vocab));
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i / 3);
  for (const float sign : {1.0f, -1.0f}) {
    const MatrixView x{&sign, DType::kF32, 1, 1, 1};
    const WeightView weight{w.data(), WeightFormat::kF32, vocab, 1, 1};
    std::vector<float> y(w.size()), values(100), expected(100);
    std::vector<int32_t> indices(100), columns(100);
    Linear(x, weight, {y.data(), vocab});
    TopK({y.data(), DType::kF32, 1, vocab, vocab}, 100,
         {expected.data(), 100, columns.data(), 100});
    for (const int threads : {1, 2, 5}) {
      LinearTopK(x, weight, 100, {values.data(), 100, indices.data(), 100},
                 {.pool = &PoolOf(threads)});
      EXPECT_EQ(values, expected);
      EXPECT_EQ(indices, columns);
    }
  }
}

// More rows than one pass over W takes, and lists so long that a pass takes fewer rows.
TEST_F(LinearTopKTest, ManyRows) {
  ASSERT_NO_FATAL_FAILURE(Check({.rows = 300,
                                 .d = 33,
                                 .vocab = 300,
                                 .x_dtype = DType::kBF16,
                                 .format = WeightFormat::kBF16,
                                 .bias = DType::kBF16},
                                {1, 100}, 2));
  const LinearSpec spec{.rows = 20, .d = 1, .vocab = 250000};
  const LinearCase linear(spec);
  std::string fault;
  const std::vector<float> y = linear.Run(&PoolOf(2), &fault);
  EXPECT_EQ(Compare<int32_t>(linear, y, 200000, 1), "");
}

TEST_F(LinearTopKTest, RandomCases) {
  const uint64_t seed = FromEnvironment("RIFFLE_TEST_SEED", 1);
  const uint64_t cases = FromEnvironment("RIFFLE_TEST_CASES", 80);
  for (uint64_t i = 0; i < cases; ++i) {
    Rng rng(seed + i);
    LinearSpec spec;
    spec.rows = rng.OneIn(4) ? rng.Between(1, 40) : rng.Between(1, 6);
    spec.format = rng.Pick(std::vector{WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16,
                                       WeightFormat::kQ8_0});
    const bool q8 = spec.format == WeightFormat::kQ8_0;
    spec.d = q8 ? 32 * rng.Between(1, 12) : rng.Between(0, 400);
    spec.vocab = rng.OneIn(3) ? rng.Between(1, 4000) : rng.Between(1, 300);
    spec.x_dtype = rng.Pick(std::vector{DType::kF32, DType::kF16, DType::kBF16});
    spec.transposed = !q8 && rng.OneIn(3);
    if (rng.OneIn(2)) spec.bias = rng.Pick(std::vector{DType::kF32, DType::kF16, DType::kBF16});
    spec.round_x = rng.OneIn(4);
    spec.data = rng.Pick(kAllLinearData);
    spec.x_gap = rng.OneIn(2) ? 0 : rng.Below(9);
    spec.weight_gap = rng.OneIn(2) ? 0 : rng.Below(9);
    spec.backwards = rng.OneIn(4);
    spec.shift = static_cast<int>(rng.OneIn(2) ? 0 : rng.Below(8));
    spec.seed = rng.Next();
    ASSERT_NO_FATAL_FAILURE(Check(spec, {rng.Between(1, spec.vocab), rng.Between(1, 70)},
                                  static_cast<int>(rng.Between(1, 3))))
        << "RIFFLE_TEST_SEED=" << seed + i << " RIFFLE_TEST_CASES=1 repeats it";
  }
}

}  // namespace
}  // namespace riffle::test
