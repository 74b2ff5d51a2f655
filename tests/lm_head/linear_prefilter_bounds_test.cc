// The bounds of the prefilter hold and are tight, in place and packed, on every SIMD target.
#include <gtest/gtest.h>

#include "lm_head/linear_call.h"
#include "lm_head/prefilter/prefilter_kernels.h"
#include "testing/prefilter_call.h"

namespace riffle::test {
namespace {

// Checks the bounds of every logit against Linear's result; returns the largest distance between an
// upper and a lower bound.
double CheckBounds(const MatrixView& x, const WeightView& weight, const LinearOptions& options) {
  const lm_head::PrefilterKernels& kernels = lm_head::GetPrefilterKernels();
  std::vector<float> y(static_cast<size_t>(x.rows * weight.rows));
  Linear(x, weight, {y.data(), weight.rows}, options);
  lm_head::LinearCall call(x, weight, options);
  core::Lease lease(&PoolOf(1));
  const lm_head::PrefilterPlan plan = lm_head::PlanPrefilter(x.rows, 1);
  const lm_head::PrefilterShared shared =
      lm_head::PlanPrefilterShared(plan, weight.cols, call.PackedXBytes(plan.rows));
  const lm_head::BoundsScratch layout = lm_head::PlanBounds(plan.rows);
  uint8_t* memory = lease.Shared(shared.bytes + layout.bytes);
  lm_head::PrefilterArgs args;
  args.linear = call.PackRows(nullptr, 0, x.rows, memory, lease);
  args.x = shared.x.At(memory);
  args.inplace = shared.inplace.At(memory);
  args.errors = shared.errors.At(memory);
  std::vector<bool> prefiltered;
  for (int64_t row = 0; row < x.rows; ++row) {
    prefiltered.push_back(kernels.quantize_row(args, row));
  }
  std::vector<float> lower(static_cast<size_t>(x.rows * lm_head::kTile)), upper(lower.size());
  double widest = 0;
  for (int64_t tile = 0; tile * lm_head::kTile < weight.rows; ++tile) {
    kernels.tile_bounds(args, tile, layout, memory + shared.bytes, lower.data(), upper.data());
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t i = 0; i < lm_head::kTile && tile * lm_head::kTile + i < weight.rows; ++i) {
        if (!prefiltered[static_cast<size_t>(row)]) continue;
        const float exact = y[static_cast<size_t>(row * weight.rows + tile * lm_head::kTile + i)];
        const float low = lower[static_cast<size_t>(row * lm_head::kTile + i)];
        const float high = upper[static_cast<size_t>(row * lm_head::kTile + i)];
        // NaN comes before every number, so no bound may put a number before it.
        const bool holds = std::isnan(exact) ? std::isnan(high) || high == kInf
                                             : !(low > exact) && !(high < exact);
        EXPECT_TRUE(holds) << "row " << row << ", column " << tile * lm_head::kTile + i << ": "
                           << exact << " is not from " << low << " to " << high << " on "
                           << Target();
        if (std::isfinite(high - low)) {
          widest = std::max(widest, double{high} - low);
        }
      }
    }
  }
  return widest;
}

class PrefilterBoundsTest : public testing::Test {
 protected:
  ~PrefilterBoundsTest() override { SetTarget(""); }

  // With all rows together, and with one, two and three rows at a time.
  static void Check(const PrefilterCall& call) {
    for (const std::string& target : Targets()) {
      SetTarget(target);
      for (const int64_t step : {int64_t{1}, int64_t{2}, int64_t{3}, call.rows}) {
        for (int64_t row = 0; row < call.rows; row += step) {
          const PrefilterCall part = call.Rows(row, std::min(step, call.rows - row));
          CheckBounds(part.X(), part.W(), part.Options(1));
        }
      }
    }
  }
};

TEST_F(PrefilterBoundsTest, EveryDataAndShape) {
  for (const std::string& target : Targets()) {
    SetTarget(target);
    for (const LinearData data : kAllLinearData) {
      for (const int64_t d : {32, 160, 672, 1344}) {
        for (const int64_t rows : {1, 2, 3, 7}) {
          const LinearCase linear({.rows = rows,
                                   .d = d,
                                   .vocab = rows == 7 ? 130 : 70,
                                   .x_dtype = d == 160 ? DType::kBF16 : DType::kF32,
                                   .format = WeightFormat::kQ8_0,
                                   .bias = d == 160 ? std::optional(DType::kF32) : std::nullopt,
                                   .round_x = (d / 32 + rows) % 2 == 0,
                                   .data = data,
                                   .seed = static_cast<uint64_t>(d)});
          CheckBounds(linear.x(), linear.weight(), linear.options(&PoolOf(1)));
        }
      }
    }
  }
}

// x - x' points in the direction of w: every input is as far from its integer as possible, on the
// side of the weight's sign, and all weights have the same size. The error is then nearly the limit
// of Cauchy and Schwarz, so a bound half as wide would fail.
TEST_F(PrefilterBoundsTest, ErrorsAddUp) {
  for (const int64_t rows : {1, 2, 3, 4}) {
    PrefilterCall call(rows, 320, 128);
    Rng rng(11);
    for (int64_t block = 0; block < 1280; ++block) {
      call.SetScale(block, 0.01f);
      for (int i = 0; i < 32; ++i) {
        call.Q(block, i) = static_cast<int8_t>(rng.Below(2) == 0 ? -127 : 127);
      }
    }
    const float max_q = rows <= lm_head::kInplaceRows ? float{lm_head::kMaxInplaceQ} : 127;
    for (int64_t i = 0; i < rows * 320; ++i) {
      const int8_t q = call.Q(i % 320 / 32, static_cast<int>(i % 32));
      const float side = (q < 0) == (i / 320 % 2 == 0) ? 0.499f : -0.499f;
      call.x[static_cast<size_t>(i)] =
          i % 32 == 0 ? max_q : std::round(PrefilterCall::Normal(rng) * 30) + side;
    }
    for (const std::string& target : Targets()) {
      SetTarget(target);
      const double widest = CheckBounds(call.X(), call.W(), call.Options(1));
      // Twice the error that the 310 rounded inputs cause in the first column.
      EXPECT_LT(widest, 2 * 1.5 * 310 * 0.499 * 127 * 0.01) << rows << " rows on " << target;
    }
  }
}

// Bounds that hold but are wide would drop no column.
TEST_F(PrefilterBoundsTest, Tight) {
  for (const int64_t rows : {1, 2, 3, 4}) {
    const PrefilterCall call(rows, 640, 640);
    double x_norm = 0;
    for (const float x : call.x) x_norm += double{x} * x;
    const double w_norm = 640 * std::pow(0.015 * 45, 2);
    const double size = std::sqrt(x_norm / static_cast<double>(rows) * w_norm);
    const double share = rows <= lm_head::kInplaceRows ? 0.0004 : 0.012;
    for (const std::string& target : Targets()) {
      SetTarget(target);
      EXPECT_LT(CheckBounds(call.X(), call.W(), call.Options(1)), 2 * share * size);
    }
  }
}

TEST_F(PrefilterBoundsTest, HugeAndTinyInputs) {
  PrefilterCall call(9, 96, 300);
  const float factors[] = {1e18f, 3e19f, 1e30f, 1e37f, 1e-20f, 1e-30f, 1e-36f, 1e-42f, 0.0f};
  for (size_t i = 0; i < call.x.size(); ++i) call.x[i] *= factors[i / 96];
  Check(call);
}

TEST_F(PrefilterBoundsTest, ScalesThatAreNotFinite) {
  PrefilterCall call(6, 96, 500);
  const float scales[] = {kInf, -kInf, kNaN, 65504, -65504, 6e-8f, 0};
  Rng rng(3);
  for (int i = 0; i < 60; ++i) call.SetScale(rng.Below(1500), rng.Pick(scales));
  for (int i = 0; i < 32; ++i) call.Q(300, i) = 0;  // inf * 0
  call.SetScale(300, kInf);
  std::fill_n(call.x.begin(), 96, 0.0f);
  Check(call);
}

// Weights of -128 and 127, and one scale of a column that is far larger than the others.
TEST_F(PrefilterBoundsTest, UnevenScales) {
  PrefilterCall call(3, 1120, 300);
  Rng rng(8);
  for (int64_t block = 0; block < 300 * 35; ++block) {
    if (block % 35 == block / 35 % 35) call.SetScale(block, block % 2 == 0 ? 900 : -900);
    for (int i = 0; i < 32; ++i) {
      if (rng.Below(3) == 0) call.Q(block, i) = static_cast<int8_t>(i % 2 == 0 ? -128 : 127);
    }
  }
  Check(call);
}

TEST_F(PrefilterBoundsTest, Bias) {
  PrefilterCall call(5, 64, 700);
  Rng rng(5);
  const float values[] = {kInf, -kInf, kNaN, 3.4e38f, -3.4e38f, 1e-45f, 1e25f};
  for (int64_t i = 0; i < 700; ++i) {
    call.bias.push_back(i % 20 == 0 ? rng.Pick(values) : PrefilterCall::Normal(rng) * 3);
  }
  Check(call);
}

}  // namespace
}  // namespace riffle::test
