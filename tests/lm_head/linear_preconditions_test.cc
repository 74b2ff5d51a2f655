// Preconditions of kernels are executed in builds with assertions, and nowhere else.
#include <gtest/gtest.h>

#include "core/scratch_layout.h"
#include "lm_head/product_kernels.h"

namespace riffle::test {
namespace {

#ifdef RIFFLE_ASSERTIONS
static_assert(HWY_IS_DEBUG_BUILD, "HWY_DASSERT is off in a build that is to have assertions");
#endif

class LinearPreconditionsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HWY_IS_DEBUG_BUILD) GTEST_SKIP() << "a build without assertions";
    testing::FLAGS_gtest_death_test_style = "threadsafe";
  }

  // A k block of one f32 input for all columns, with room for sums of eight rows.
  static lm_head::WeightTile Tile(const float* weight, uint8_t* tails) {
    lm_head::WeightTile tile{};
    for (const uint8_t*& column : tile.column) {
      column = reinterpret_cast<const uint8_t*>(weight);
    }
    tile.column_bytes = 4 * lm_head::kInputGroup;
    tile.columns = lm_head::kTile;
    tile.inputs = lm_head::kInputGroup;
    tile.tails = tails;
    return tile;
  }

  alignas(64) float weight_[lm_head::kInputGroup] = {};
  alignas(64) float x_[8 * lm_head::kKBlock] = {};
  alignas(64) float sums_[8 * lm_head::kTile] = {};
  alignas(64) uint8_t tails_[4 * lm_head::kTile * lm_head::kInputGroup] = {};
};

TEST_F(LinearPreconditionsTest, InPlaceTakesFewRowsAndWholeGroups) {
  const auto run = lm_head::ChooseProduct(WeightFormat::kF32, false).multiply_inplace;
  lm_head::WeightTile tile = Tile(weight_, tails_);
  lm_head::KBlockProduct product{x_, nullptr, sums_, lm_head::kSmallM};
  run(product, tile);  // legal
  product.rows = lm_head::kSmallM + 1;
  EXPECT_DEATH(run(product, tile), "kSmallM");
  product.rows = 1;
  tile.inputs = lm_head::kInputGroup - 1;
  EXPECT_DEATH(run(product, tile), "kInputGroup");
}

TEST_F(LinearPreconditionsTest, ScratchIsAligned) {
  core::ScratchLayout layout;
  const core::ScratchArray<float> array = layout.Place<float>(3);
  EXPECT_EQ(array.At(tails_), reinterpret_cast<float*>(tails_));
  EXPECT_DEATH(array.At(tails_ + 4), "kScratchAlignment");
}

TEST_F(LinearPreconditionsTest, RowsOfXExist) {
  lm_head::PackXTask task;
  task.x = reinterpret_cast<const uint8_t*>(weight_);
  task.rows = 1;
  task.d = lm_head::kInputGroup;
  task.operands = x_;
  lm_head::GetPackKernels().x(task, 0);  // legal
  EXPECT_DEATH(lm_head::GetPackKernels().x(task, 1), "row < task.rows");
}

}  // namespace
}  // namespace riffle::test
