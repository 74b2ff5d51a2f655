// The screen of LinearTopK: its bounds hold, it leaves out most columns, and whatever it is given
// the answer has the bits of TopK over the result of Linear. On every SIMD target.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "lm_head/linear_call.h"
#include "lm_head/screen_kernels.h"
#include "lm_head/screened_topk.h"
#include "riffle/topk.h"
#include "tests/distributions.h"
#include "tests/linear_case.h"
#include "tests/text.h"
#include "tests/topk_check.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A call to be made hostile: x f32 [rows, d], W Q8_0 [vocab, d].
struct Call {
  int64_t rows, d, vocab;
  std::vector<float> x;
  std::vector<uint8_t> w;
  std::vector<float> bias;

  Call(int64_t rows_, int64_t d_, int64_t vocab_, uint64_t seed = 1)
      : rows(rows_), d(d_), vocab(vocab_) {
    Rng rng(seed);
    for (int64_t i = 0; i < rows * d; ++i) x.push_back(Normal(rng));
    w.resize(static_cast<size_t>(vocab * d / 32 * 34));
    for (int64_t block = 0; block < vocab * d / 32; ++block) {
      SetScale(block, 0.01f + 0.01f * static_cast<float>(rng.Unit()));
      for (int i = 0; i < 32; ++i) {
        Q(block, i) = static_cast<int8_t>(std::lround(std::clamp(Normal(rng) * 45, -128.f, 127.f)));
      }
    }
  }
  static float Normal(Rng& rng) {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - rng.Unit())) *
                              std::cos(6.283185307179586 * rng.Unit()));
  }
  void SetScale(int64_t block, float scale) {
    Store(DType::kF16, Encode(DType::kF16, scale), w.data() + block * 34);
  }
  int8_t& Q(int64_t block, int i) {
    return reinterpret_cast<int8_t&>(w[static_cast<size_t>(block * 34 + 2 + i)]);
  }

  MatrixView X() const { return {x.data(), DType::kF32, rows, d, d}; }
  WeightView W() const { return {w.data(), WeightFormat::kQ8_0, vocab, d, d / 32, 1}; }
  LinearOptions Options(int threads) const {
    LinearOptions options;
    if (!bias.empty()) options.bias = {bias.data(), DType::kF32, vocab};
    options.pool = &PoolOf(threads);
    return options;
  }
};

// Empty when the screened answer is that of TopK over the logits.
std::string Compare(const MatrixView& x, const WeightView& weight, const LinearOptions& options,
                    const std::vector<float>& y, int64_t k, ScreenStats* stats,
                    Screening screening = Screening::kAlways) {
  const auto size = static_cast<size_t>(x.rows * k);
  std::vector<float> values(size), expected(size);
  std::vector<int32_t> indices(size), columns(size);
  TopK({y.data(), DType::kF32, x.rows, weight.rows, weight.rows}, k,
       {expected.data(), k, columns.data(), k});
  LinearTopKBy(screening, x, weight, k, {values.data(), k, indices.data(), k}, options, stats);
  for (size_t i = 0; i < size; ++i) {
    if (indices[i] != columns[i] || std::memcmp(&values[i], &expected[i], sizeof(float)) != 0) {
      return Concat("row ", i / static_cast<size_t>(k), ", place ", i % static_cast<size_t>(k),
                    ": ", values[i], " of ", indices[i], ", not ", expected[i], " of ", columns[i],
                    "; k=", k, " vocab=", weight.rows, " on ", Target());
    }
  }
  return "";
}

class LinearScreenTest : public testing::Test {
 protected:
  ~LinearScreenTest() override { SetTarget(""); }

  static void Check(const LinearSpec& spec, const std::vector<int64_t>& ks, int threads) {
    const LinearCase linear(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      std::string fault;
      const std::vector<float> y = linear.Run(&PoolOf(1), &fault);
      for (const int64_t k : ks) {
        ScreenStats stats;
        ASSERT_EQ(
            Compare(linear.x(), linear.weight(), linear.options(&PoolOf(threads)), y, k, &stats),
            "")
            << Describe(spec);
        ASSERT_EQ(stats.screened + stats.given_up, spec.rows);
      }
    }
  }

  // What the screen does with a call, which is the same on every target.
  static ScreenStats Check(const Call& call, int64_t k, int threads = 2, bool round_x = false) {
    ScreenStats stats;
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

  // Holds the bounds of every logit against Linear; returns the widest as a share of |x| |w|.
  static double CheckBounds(const MatrixView& x, const WeightView& weight,
                            const LinearOptions& options);
};

double LinearScreenTest::CheckBounds(const MatrixView& x, const WeightView& weight,
                                     const LinearOptions& options) {
  const ScreenKernels& kernels = GetScreenKernels();
  std::vector<float> y(static_cast<size_t>(x.rows * weight.rows));
  Linear(x, weight, {y.data(), weight.rows}, options);
  LinearCall call(x, weight, options);
  Lease lease(&PoolOf(1));
  ScreenPlan plan = PlanScreen(x.rows, 1);
  const ScreenScratch layout = PlanScreenScratch(plan);
  const ScreenShared shared = PlanScreenShared(plan, weight.cols);
  const size_t words = call.WordBytes(plan.rows);
  uint8_t* memory = lease.Shared(words + shared.bytes + layout.bytes);
  ScreenArgs args;
  args.linear = call.Take(nullptr, 0, x.rows, memory, lease);
  args.x = reinterpret_cast<ScreenBlock*>(memory + words + shared.x);
  args.errors = reinterpret_cast<ScreenError*>(memory + words + shared.errors);
  std::vector<bool> screened;
  for (int64_t row = 0; row < x.rows; ++row) {
    screened.push_back(kernels.quantize_row(args, row));
  }
  std::vector<float> lower(static_cast<size_t>(x.rows * kTile)), upper(lower.size());
  double widest = 0;
  for (int64_t tile = 0; tile * kTile < weight.rows; ++tile) {
    kernels.tile_bounds(args, tile, layout, memory + words + shared.bytes, lower.data(),
                        upper.data());
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t i = 0; i < kTile && tile * kTile + i < weight.rows; ++i) {
        if (!screened[static_cast<size_t>(row)]) continue;
        const float exact = y[static_cast<size_t>(row * weight.rows + tile * kTile + i)];
        const float low = lower[static_cast<size_t>(row * kTile + i)];
        const float high = upper[static_cast<size_t>(row * kTile + i)];
        // NaN is above every number: no number may be known to be above it.
        const bool holds = std::isnan(exact) ? std::isnan(high) || high == kInf
                                             : !(low > exact) && !(high < exact);
        EXPECT_TRUE(holds) << "row " << row << ", column " << tile * kTile + i << ": " << exact
                           << " is not from " << low << " to " << high << " on " << Target();
        if (std::isfinite(high - low)) {
          widest = std::max(widest, double{high} - low);
        }
      }
    }
  }
  return widest;
}

TEST_F(LinearScreenTest, BoundsHold) {
  for (const std::string& target : Targets()) {
    SetTarget(target);
    for (const LinearData data : kAllLinearData) {
      for (const int64_t d : {32, 160, 672, 1344}) {
        for (const bool round : {false, true}) {
          const LinearCase linear({.rows = 7,
                                   .d = d,
                                   .vocab = 200,
                                   .x_dtype = d == 160 ? DType::kBF16 : DType::kF32,
                                   .format = WeightFormat::kQ8_0,
                                   .bias = d == 160 ? std::optional(DType::kF32) : std::nullopt,
                                   .round_x = round,
                                   .data = data,
                                   .seed = static_cast<uint64_t>(d)});
          CheckBounds(linear.x(), linear.weight(), linear.options(&PoolOf(1)));
        }
      }
    }
  }
}

// x - x' in the direction of w: every input lies as far as can be from its int8, on the side that
// the weight has. The error is then nearly what Cauchy and Schwarz allow.
TEST_F(LinearScreenTest, BoundsHoldWhereErrorsAddUp) {
  Call call(4, 320, 128);
  Rng rng(11);
  for (int64_t i = 0; i < 4 * 320; ++i) {
    const int8_t q = call.Q(i % 320 / 32, static_cast<int>(i % 32));
    const float side = (q < 0) == (i / 320 % 2 == 0) ? 0.499f : -0.499f;
    call.x[static_cast<size_t>(i)] =
        i % 32 == 0 ? 127.0f : std::round(Call::Normal(rng) * 40) + side;
  }
  for (const std::string& target : Targets()) {
    SetTarget(target);
    CheckBounds(call.X(), call.W(), call.Options(1));
  }
}

// A bound that is true but useless would screen nothing out.
TEST_F(LinearScreenTest, BoundsAreTight) {
  const Call call(4, 640, 640);
  double x_norm = 0;
  double w_norm = 0;
  for (const float x : call.x) x_norm += double{x} * x;
  for (int i = 0; i < 640; ++i) w_norm += std::pow(0.015 * 45, 2);
  const double size = std::sqrt(x_norm / 4 * w_norm);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    EXPECT_LT(CheckBounds(call.X(), call.W(), call.Options(1)), 2 * 0.012 * size);
  }
}

TEST_F(LinearScreenTest, HugeAndTinyInputs) {
  Call call(9, 96, 700);
  const float factors[] = {1e18f, 3e19f, 1e30f, 1e37f, 1e-20f, 1e-30f, 1e-36f, 1e-42f, 0.0f};
  for (size_t i = 0; i < call.x.size(); ++i) call.x[i] *= factors[i / 96];
  const ScreenStats stats = Check(call, 5);
  EXPECT_GE(stats.screened, 3);
  EXPECT_GE(stats.given_up, 2);  // 1e30 and 1e37
  Check(call, 5, 2, /*round_x=*/true);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    CheckBounds(call.X(), call.W(), call.Options(1));
  }
}

TEST_F(LinearScreenTest, OneLargeInput) {
  Call call(3, 640, 3000);
  for (int64_t row = 0; row < 3; ++row) call.x[static_cast<size_t>(row * 640 + 77)] = 60;
  EXPECT_EQ(Check(call, 10).screened, 3);
}

TEST_F(LinearScreenTest, LeavesOutMostColumns) {
  const Call call(13, 640, 12000);
  for (const int64_t k : {1, 64}) {
    const ScreenStats stats = Check(call, k);
    EXPECT_EQ(stats.screened, 13);
    EXPECT_GE(stats.multiplied, 13 * k);
    EXPECT_LT(stats.multiplied, 13 * (k + 12000 / 25));
  }
}

TEST_F(LinearScreenTest, EqualColumnsAreMultipliedAsAWhole) {
  Call call(5, 64, 9000);
  for (int64_t i = 1; i < 9000; ++i) {
    std::memcpy(call.w.data() + i * 68, call.w.data(), 68);
  }
  EXPECT_EQ(Check(call, 3).given_up, 5);
  for (size_t i = 0; i < call.w.size(); i += 34) std::memset(call.w.data() + i, 0, 2);
  EXPECT_EQ(Check(call, 64).given_up, 5);  // all scales zero
}

// Logits much nearer to one another than the bound: all are candidates.
TEST_F(LinearScreenTest, NearTies) {
  for (const int64_t vocab : {600, 5000}) {
    Call call(4, 320, vocab);
    Rng rng(7);
    for (int64_t column = 1; column < vocab; ++column) {
      std::memcpy(call.w.data() + column * 340, call.w.data(), 340);
      int8_t& q = call.Q(column * 10 + rng.Below(10), static_cast<int>(rng.Below(32)));
      q = static_cast<int8_t>(q + (q > 0 ? -1 : 1));
    }
    const ScreenStats stats = Check(call, 20, 1);
    EXPECT_EQ(stats.screened, vocab == 600 ? 4 : 0);
    if (vocab == 600) {
      EXPECT_GT(stats.multiplied, 4 * 300);
    }
  }
}

TEST_F(LinearScreenTest, ScalesThatAreNotFinite) {
  Call call(6, 96, 2000);
  const float scales[] = {kInf, -kInf, kNaN, 65504, -65504, 6e-8f, 0};
  Rng rng(3);
  for (int i = 0; i < 60; ++i) call.SetScale(rng.Below(6000), rng.Pick(scales));
  for (int i = 0; i < 32; ++i) call.Q(300, i) = 0;  // inf * 0
  call.SetScale(300, kInf);
  std::fill_n(call.x.begin(), 96, 0.0f);
  for (const int64_t k : {1, 30, 100}) Check(call, k);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    CheckBounds(call.X(), call.W(), call.Options(1));
  }
}

TEST_F(LinearScreenTest, InputsThatAreNotFinite) {
  Call call(6, 96, 2000);
  call.x[5] = kNaN;
  call.x[2 * 96 + 95] = kInf;
  call.x[4 * 96] = -kInf;
  const ScreenStats stats = Check(call, 7);
  EXPECT_EQ(stats.screened, 3);
  EXPECT_EQ(stats.given_up, 3);
}

TEST_F(LinearScreenTest, Bias) {
  Call call(5, 64, 3000);
  Rng rng(5);
  for (int64_t i = 0; i < 3000; ++i) call.bias.push_back(Call::Normal(rng) * 3);
  EXPECT_EQ(Check(call, 12).screened, 5);
  const float values[] = {kInf, -kInf, kNaN, 3.4e38f, -3.4e38f, 1e-45f, 1e25f};
  for (int i = 0; i < 40; ++i) call.bias[static_cast<size_t>(rng.Below(3000))] = rng.Pick(values);
  for (const int64_t k : {1, 12, 60}) Check(call, k);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    CheckBounds(call.X(), call.W(), call.Options(1));
  }
}

TEST_F(LinearScreenTest, EveryDataAndShape) {
  for (const LinearData data : kAllLinearData) {
    for (const int64_t rows : {1, 3, 14}) {
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
    ASSERT_NO_FATAL_FAILURE(Check({.rows = 2,
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

// More rows than go through W together.
TEST_F(LinearScreenTest, ManyRows) {
  ASSERT_NO_FATAL_FAILURE(
      Check({.rows = 300, .d = 32, .vocab = 400, .format = WeightFormat::kQ8_0}, {1, 9}, 2));
}

// More candidates than a list holds, or all pieces together.
TEST_F(LinearScreenTest, LongLists) {
  const Call call(2, 32, 20000);
  for (const int64_t k : {1000, 3000, 20000}) Check(call, k, 3);
}

TEST_F(LinearScreenTest, ManyThreads) {
  const Call call(7, 128, 15000);
  for (const int threads : {1, 4, 9}) EXPECT_EQ(Check(call, 33, threads).screened, 7);
}

// Rows that are given up among others that are not.
TEST_F(LinearScreenTest, SomeRowsAreGivenUp) {
  Call call(11, 64, 9000);
  for (int64_t row = 0; row < 11; row += 3) {
    std::fill_n(call.x.begin() + row * 64, 64, 0.0f);  // every logit is zero
  }
  const ScreenStats stats = Check(call, 6);
  EXPECT_EQ(stats.given_up, 4);
  EXPECT_EQ(stats.screened, 7);
}

// What LinearTopK chooses by itself.
TEST_F(LinearScreenTest, Auto) {
  const Call call(8, 96, 9000);
  std::vector<float> y(static_cast<size_t>(8 * 9000));
  for (const std::string& target : Targets()) {
    SetTarget(target);
    Linear(call.X(), call.W(), {y.data(), 9000}, call.Options(2));
    ScreenStats stats;
    EXPECT_EQ(Compare(call.X(), call.W(), call.Options(2), y, 40, &stats, Screening::kAuto), "");
    EXPECT_EQ(stats.screened, GetScreenKernels().native ? 8 : 0);
  }
}

TEST(ScreenPlan, MemoryIsBounded) {
  const ScreenPlan plan = PlanScreen(256, 64);
  EXPECT_EQ(plan.rows, 256);
  EXPECT_GE(plan.capacity, plan.limit + kTile);
  EXPECT_GE(plan.room, plan.limit);
  EXPECT_LT(PlanScreenScratch(plan).bytes, 5u << 20);
  EXPECT_LT(PlanScreenShared(plan, 640).bytes, 10u << 20);
  EXPECT_LT(PlanScreen(256, 200000).rows, 10);
}

}  // namespace
}  // namespace riffle::test
