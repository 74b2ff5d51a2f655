// The plans of the linear layer: every tile once, and memory that does not grow with the
// vocabulary.
#include "lm_head/linear_plan.h"

#include <gtest/gtest.h>

namespace riffle::test {
namespace {

TEST(LinearPlan, PiecesCoverTheVocabularyOnce) {
  for (const int64_t vocab : {1, 63, 64, 65, 640, 5000, 201088, 262144, INT32_MAX}) {
    for (const int threads : {1, 2, 3, 7, 64, 1024}) {
      const lm_head::PiecePlan plan = lm_head::PlanPieces(vocab, threads);
      ASSERT_GE(plan.pieces, 1);
      ASSERT_LE(plan.pieces, 8 * threads);
      int64_t next = 0;
      for (int64_t piece = 0; piece < plan.pieces; ++piece) {
        ASSERT_EQ(plan.Begin(piece), next);
        ASSERT_GT(plan.End(piece), next) << "an empty piece";
        next = plan.End(piece);
      }
      ASSERT_EQ(next, (vocab + lm_head::kTile - 1) / lm_head::kTile);
    }
  }
}

// One row uses all threads as soon as there is a tile for each.
TEST(LinearPlan, OneRowUsesAllThreads) {
  for (const int threads : {2, 4, 16}) {
    for (const int64_t tiles : {threads, 2 * threads, 40 * threads}) {
      EXPECT_GE(lm_head::PlanPieces(tiles * lm_head::kTile, threads).pieces, threads);
    }
  }
}

TEST(LinearPlan, RowsPerPass) {
  EXPECT_EQ(lm_head::RowsPerPass(0, 256), 0);
  EXPECT_EQ(lm_head::RowsPerPass(1, 256), 1);
  EXPECT_EQ(lm_head::RowsPerPass(256, 256), 256);
  EXPECT_EQ(lm_head::RowsPerPass(257, 256), 129);
  EXPECT_EQ(lm_head::RowsPerPass(1000, 256), 250);
}

// The published case: 256 rows of 201088 logits would be 206 MB.
TEST(LinearPlan, NeverHoldsTheLogits) {
  const lm_head::PiecePlan pieces = lm_head::PlanPieces(201088, 2);
  const lm_head::CandidatePlan plan = lm_head::PlanCandidates(256, 64, pieces);
  EXPECT_EQ(plan.rows, 256);
  EXPECT_GE(plan.limit, 64);
  EXPECT_GE(plan.capacity, plan.limit + lm_head::kTile);
  EXPECT_LT(lm_head::PlanKept(plan, pieces.pieces).bytes, 4u << 20);
  EXPECT_LT(lm_head::PlanLists(plan, lm_head::PlanTileScratch(256).bytes).bytes, 3u << 20);
}

TEST(LinearPlan, ListsHoldWhatIsAsked) {
  for (const int64_t vocab : {1, 64, 1000, 300000}) {
    for (const int64_t k : {int64_t{1}, vocab / 2 + 1, vocab}) {
      const lm_head::PiecePlan pieces = lm_head::PlanPieces(vocab, 2);
      const lm_head::CandidatePlan plan = lm_head::PlanCandidates(300, k, pieces);
      const int64_t columns = pieces.tiles_per_piece * lm_head::kTile;
      EXPECT_GE(plan.limit, std::min(k, columns));
      EXPECT_GE(plan.capacity, plan.limit);
      EXPECT_TRUE(plan.capacity == columns || plan.capacity >= plan.limit + lm_head::kTile);
      EXPECT_GE(plan.rows, 1);
      EXPECT_LE(plan.rows * plan.capacity * 8, (int64_t{64} << 20) + plan.capacity * 8);
    }
  }
}

}  // namespace
}  // namespace riffle::test
