// The plans of the linear layer: every tile is planned exactly once, and memory does not grow with
// the vocabulary.
#include "lm_head/linear_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "lm_head/plain_topk_plan.h"

namespace riffle::test {
namespace {

TEST(LinearPlan, ChunksCoverTheVocabularyOnce) {
  for (const int64_t vocab : {1, 63, 64, 65, 640, 5000, 201088, 262144, INT32_MAX}) {
    for (const int threads : {1, 2, 3, 7, 64, 1024}) {
      const lm_head::ChunkPlan plan = lm_head::PlanChunks(vocab, threads);
      ASSERT_GE(plan.chunks, 1);
      ASSERT_LE(plan.chunks, 8 * threads);
      int64_t next = 0;
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        ASSERT_EQ(plan.Begin(chunk), next);
        ASSERT_GT(plan.End(chunk), next) << "an empty chunk";
        next = plan.End(chunk);
      }
      ASSERT_EQ(next, (vocab + lm_head::kTile - 1) / lm_head::kTile);
    }
  }
}

// One row uses all threads as soon as there is a tile for each.
TEST(LinearPlan, OneRowUsesAllThreads) {
  for (const int threads : {2, 4, 16}) {
    for (const int64_t tiles : {threads, 2 * threads, 40 * threads}) {
      EXPECT_GE(lm_head::PlanChunks(tiles * lm_head::kTile, threads).chunks, threads);
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

// In the published case 256 rows of 201088 logits would take 206 MB.
TEST(LinearPlan, NeverHoldsTheLogits) {
  const lm_head::ChunkPlan chunks = lm_head::PlanChunks(201088, 2);
  const lm_head::CandidatePlan plan = lm_head::PlanCandidates(256, 64, chunks);
  EXPECT_EQ(plan.rows, 256);
  EXPECT_GE(plan.limit, 64);
  EXPECT_GE(plan.capacity, plan.limit + lm_head::kTile);
  EXPECT_LT(lm_head::PlanKept(plan, chunks.chunks, 0).bytes, 4u << 20);
  EXPECT_LT(lm_head::PlanLists(plan, lm_head::PlanTileScratch(256).bytes).bytes, 3u << 20);
}

TEST(LinearPlan, ListsHoldWhatIsAsked) {
  for (const int64_t vocab : {1, 64, 1000, 300000}) {
    for (const int64_t k : {int64_t{1}, vocab / 2 + 1, vocab}) {
      const lm_head::ChunkPlan chunks = lm_head::PlanChunks(vocab, 2);
      const lm_head::CandidatePlan plan = lm_head::PlanCandidates(300, k, chunks);
      const int64_t columns = chunks.tiles_per_chunk * lm_head::kTile;
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
