// The prefilter of LinearTopK drops most columns, and the answer has the bits of TopK over the
// result of Linear whatever the input, on every SIMD target.
#include <gtest/gtest.h>

#include "lm_head/prefilter/prefilter_kernels.h"
#include "testing/prefilter_call.h"

namespace riffle::test {
namespace {

class LinearPrefilterTest : public testing::Test {
 protected:
  ~LinearPrefilterTest() override { SetTarget(""); }

  static void Check(const LinearSpec& spec, const std::vector<int64_t>& ks, int threads) {
    const LinearCase linear(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::string fault;
      const std::vector<float> y = linear.Run(&PoolOf(1), &fault);
      for (const int64_t k : ks) {
        lm_head::PrefilterStats stats;
        ASSERT_EQ(
            Compare(linear.x(), linear.weight(), linear.options(&PoolOf(threads)), y, k, &stats),
            "")
            << Describe(spec);
        ASSERT_EQ(stats.prefiltered + stats.fell_back, spec.rows);
      }
    }
  }

  // How many rows of a call were prefiltered or fell back; the same on every target.
  static lm_head::PrefilterStats Check(const PrefilterCall& call, int64_t k, int threads = 2,
                                       bool round_x = false) {
    lm_head::PrefilterStats stats;
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::vector<float> y(static_cast<size_t>(call.rows * call.vocab));
      LinearOptions options = call.Options(threads);
      options.round_x = round_x;
      Linear(call.X(), call.W(), {y.data(), call.vocab}, options);
      EXPECT_EQ(Compare(call.X(), call.W(), options, y, k, &stats), "");
    }
    return stats;
  }

  // Checks one, two and three rows at a time, which read W in place.
  static void CheckInplace(const PrefilterCall& call, int64_t k) {
    for (const int64_t rows : {1, 2, 3}) {
      for (int64_t row = 0; row < call.rows; row += rows) {
        Check(call.Rows(row, std::min(rows, call.rows - row)), k);
      }
    }
  }
};

TEST_F(LinearPrefilterTest, HugeAndTinyInputs) {
  PrefilterCall call(9, 96, 700);
  const float factors[] = {1e18f, 3e19f, 1e30f, 1e37f, 1e-20f, 1e-30f, 1e-36f, 1e-42f, 0.0f};
  for (size_t i = 0; i < call.x.size(); ++i) call.x[i] *= factors[i / 96];
  const lm_head::PrefilterStats stats = Check(call, 5);
  EXPECT_GE(stats.prefiltered, 3);
  EXPECT_GE(stats.fell_back, 2);  // 1e30 and 1e37
  Check(call, 5, 2, /*round_x=*/true);
  CheckInplace(call, 5);
}

TEST_F(LinearPrefilterTest, OneLargeInput) {
  PrefilterCall call(3, 640, 3000);
  for (int64_t row = 0; row < 3; ++row) call.x[static_cast<size_t>(row * 640 + 77)] = 60;
  EXPECT_EQ(Check(call, 10).prefiltered, 3);
  EXPECT_EQ(Check(call.Rows(1, 1), 10).prefiltered, 1);
}

TEST_F(LinearPrefilterTest, LeavesOutMostColumns) {
  const PrefilterCall call(13, 640, 12000);
  for (const int64_t k : {1, 64}) {
    const lm_head::PrefilterStats stats = Check(call, k);
    EXPECT_EQ(stats.prefiltered, 13);
    EXPECT_GE(stats.multiplied, 13 * k);
    EXPECT_LT(stats.multiplied, 13 * (k + 12000 / 25));
  }
  for (const int64_t rows : {1, 2, 3}) {  // in place: tighter bounds
    for (const int64_t k : {1, 64, 1000}) {
      const lm_head::PrefilterStats stats = Check(call.Rows(3, rows), k);
      EXPECT_EQ(stats.prefiltered, rows);
      EXPECT_GE(stats.multiplied, rows * k);
      EXPECT_LT(stats.multiplied, rows * (k + k / 8 + 8));
    }
  }
}

TEST_F(LinearPrefilterTest, EqualColumnsAreMultipliedAsAWhole) {
  PrefilterCall call(5, 64, 9000);
  for (int64_t i = 1; i < 9000; ++i) {
    std::memcpy(call.w.data() + i * 68, call.w.data(), 68);
  }
  EXPECT_EQ(Check(call, 3).fell_back, 5);
  EXPECT_EQ(Check(call.Rows(0, 1), 3).fell_back, 1);
  for (size_t i = 0; i < call.w.size(); i += 34) std::memset(call.w.data() + i, 0, 2);
  EXPECT_EQ(Check(call, 64).fell_back, 5);  // all scales zero
}

// The distances between logits are much smaller than the widths of their bounds, so all columns are
// candidates.
TEST_F(LinearPrefilterTest, NearTies) {
  for (const int64_t vocab : {600, 5000}) {
    PrefilterCall call(4, 320, vocab);
    Rng rng(7);
    for (int64_t column = 1; column < vocab; ++column) {
      std::memcpy(call.w.data() + column * 340, call.w.data(), 340);
      int8_t& q = call.Q(column * 10 + rng.Below(10), static_cast<int>(rng.Below(32)));
      q = static_cast<int8_t>(q + (q > 0 ? -1 : 1));
    }
    const lm_head::PrefilterStats stats = Check(call, 20, 1);
    EXPECT_EQ(stats.prefiltered, vocab == 600 ? 4 : 0);
    if (vocab == 600) {
      EXPECT_GT(stats.multiplied, 4 * 300);
    }
    CheckInplace(call, 20);
  }
}

TEST_F(LinearPrefilterTest, ScalesThatAreNotFinite) {
  PrefilterCall call(6, 96, 2000);
  const float scales[] = {kInf, -kInf, kNaN, 65504, -65504, 6e-8f, 0};
  Rng rng(3);
  for (int i = 0; i < 60; ++i) call.SetScale(rng.Below(6000), rng.Pick(scales));
  for (int i = 0; i < 32; ++i) call.Q(300, i) = 0;  // inf * 0
  call.SetScale(300, kInf);
  std::fill_n(call.x.begin(), 96, 0.0f);
  for (const int64_t k : {1, 30, 100}) Check(call, k);
  CheckInplace(call, 30);
}

TEST_F(LinearPrefilterTest, InputsThatAreNotFinite) {
  PrefilterCall call(6, 96, 2000);
  call.x[5] = kNaN;
  call.x[2 * 96 + 95] = kInf;
  call.x[4 * 96] = -kInf;
  const lm_head::PrefilterStats stats = Check(call, 7);
  EXPECT_EQ(stats.prefiltered, 3);
  EXPECT_EQ(stats.fell_back, 3);
  CheckInplace(call, 7);
  EXPECT_EQ(Check(call.Rows(0, 2), 7).fell_back, 1);
}

TEST_F(LinearPrefilterTest, Bias) {
  PrefilterCall call(5, 64, 3000);
  Rng rng(5);
  for (int64_t i = 0; i < 3000; ++i) call.bias.push_back(PrefilterCall::Normal(rng) * 3);
  EXPECT_EQ(Check(call, 12).prefiltered, 5);
  const float values[] = {kInf, -kInf, kNaN, 3.4e38f, -3.4e38f, 1e-45f, 1e25f};
  for (int i = 0; i < 40; ++i) call.bias[static_cast<size_t>(rng.Below(3000))] = rng.Pick(values);
  for (const int64_t k : {1, 12, 60}) Check(call, k);
  CheckInplace(call, 12);
}

TEST_F(LinearPrefilterTest, EveryDataAndShape) {
  for (const LinearData data : kAllLinearData) {
    for (const int64_t rows : {1, 2, 3, 14}) {
      ASSERT_NO_FATAL_FAILURE(Check({.rows = rows,
                                     .d = rows == 3 ? 672 : 64,
                                     .vocab = 2000,
                                     .x_dtype = rows == 3 ? DType::kF32 : DType::kBF16,
                                     .format = WeightFormat::kQ8_0,
                                     .data = data},
                                    {1, 64, 700}, static_cast<int>(rows)));
    }
  }
  for (const int64_t vocab : {1, 2, 31, 33, 63, 64, 65, 129}) {
    ASSERT_NO_FATAL_FAILURE(Check({.rows = 1 + vocab % 3,
                                   .d = 32,
                                   .vocab = vocab,
                                   .x_dtype = DType::kF16,
                                   .format = WeightFormat::kQ8_0,
                                   .bias = DType::kF16,
                                   .weight_gap = 1,
                                   .backwards = true,
                                   .shift = 1},
                                  {1, (vocab + 1) / 2, vocab}, 2));
  }
}

// More rows than one pass over W can serve.
TEST_F(LinearPrefilterTest, ManyRows) {
  ASSERT_NO_FATAL_FAILURE(
      Check({.rows = 300, .d = 32, .vocab = 400, .format = WeightFormat::kQ8_0}, {1, 9}, 2));
}

// More candidates than the list of a chunk can hold, or than a row may have in all.
TEST_F(LinearPrefilterTest, LongLists) {
  const PrefilterCall call(2, 32, 20000);
  for (const int64_t k : {1000, 3000, 20000}) Check(call, k, 3);
}

TEST_F(LinearPrefilterTest, ManyThreads) {
  const PrefilterCall call(7, 128, 15000);
  for (const int threads : {1, 4, 9}) EXPECT_EQ(Check(call, 33, threads).prefiltered, 7);
}

// Some rows of a call fall back, others do not.
TEST_F(LinearPrefilterTest, SomeRowsFallBack) {
  PrefilterCall call(11, 64, 9000);
  for (int64_t row = 0; row < 11; row += 3) {
    std::fill_n(call.x.begin() + row * 64, 64, 0.0f);  // every logit is zero
  }
  const lm_head::PrefilterStats stats = Check(call, 6);
  EXPECT_EQ(stats.fell_back, 4);
  EXPECT_EQ(stats.prefiltered, 7);
}

// When LinearTopK uses the prefilter by itself.
TEST_F(LinearPrefilterTest, Auto) {
  const PrefilterCall all(8, 96, 9000);
  std::vector<float> y(static_cast<size_t>(8 * 9000));
  for (const int64_t rows : {1, 2, 3, 8}) {
    const PrefilterCall call = all.Rows(0, rows);
    for (const bool round : {false, true}) {
      LinearOptions options = call.Options(2);
      options.round_x = round;
      for (const std::string& target : Targets()) {
        SetTarget(target);
        Linear(call.X(), call.W(), {y.data(), 9000}, options);
        lm_head::PrefilterStats stats;
        EXPECT_EQ(
            Compare(call.X(), call.W(), options, y, 40, &stats, lm_head::PrefilterMode::kAuto), "");
        EXPECT_EQ(stats.prefiltered, rows >= lm_head::GetPrefilterKernels().min_rows ? rows : 0);
      }
    }
  }
}

TEST(PrefilterPlan, MemoryIsBounded) {
  const lm_head::PrefilterPlan plan = lm_head::PlanPrefilter(256, 64);
  EXPECT_EQ(plan.rows, 256);
  EXPECT_GE(plan.capacity, plan.limit + lm_head::kTile);
  EXPECT_GE(plan.shared_capacity, plan.limit);
  EXPECT_LT(lm_head::PlanPrefilterScratch(plan).bytes, 5u << 20);
  EXPECT_LT(lm_head::PlanPrefilterShared(plan, 640, 0).bytes, 10u << 20);
  EXPECT_LT(
      lm_head::PlanPrefilterShared(lm_head::PlanPrefilter(1, 64), lm_head::kMaxPrefilterInputs, 0)
          .bytes,
      1u << 20);
  EXPECT_LT(lm_head::PlanPrefilter(256, 200000).rows, 10);
}

}  // namespace
}  // namespace riffle::test
