// PlanAttention: every query, head and KV split exactly once, in balanced chunks, whatever the
// shapes.
#include "attention/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/attention_args.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

struct Call {
  attention::AttentionShape shape;
  std::vector<int32_t> q_lens, kv_lens;
  int threads;
};

struct Planned {
  attention::Plan plan;
  std::vector<attention::WorkItem> items;
  std::vector<attention::DividedItem> divided_items;
  std::vector<int64_t> chunk_begin;
};

Planned MakePlan(const Call& call) {
  std::vector<int32_t> cu = {0};
  for (const int32_t q : call.q_lens) {
    cu.push_back(cu.back() + q);
  }
  Planned planned;
  planned.plan = attention::PlanAttention(call.shape, cu, call.kv_lens, call.threads, {});
  planned.items.resize(static_cast<size_t>(planned.plan.items));
  planned.divided_items.resize(static_cast<size_t>(planned.plan.divided_items));
  planned.chunk_begin.resize(static_cast<size_t>(planned.plan.chunks) + 1);
  attention::PlanAttention(call.shape, cu, call.kv_lens, call.threads,
                           {planned.items, planned.divided_items, planned.chunk_begin});
  return planned;
}

int64_t Work(const attention::WorkItem& item) {
  return int64_t{item.split_end - item.split_begin} * (item.head_end - item.head_begin) *
         (item.query_end - item.query_begin);
}

void CheckPlan(const Call& call) {
  const Planned planned = MakePlan(call);
  ASSERT_EQ(planned.chunk_begin.front(), 0);
  ASSERT_EQ(planned.chunk_begin.back(), planned.plan.items);
  ASSERT_TRUE(std::is_sorted(planned.chunk_begin.begin(), planned.chunk_begin.end()));
  // (sequence, query, head) -> the KV splits that were done, in order.
  std::map<std::tuple<int, int, int>, std::vector<std::pair<int, int>>> seen;
  for (const attention::WorkItem& item : planned.items) {
    ASSERT_LE((item.query_end - item.query_begin) * call.shape.group, planned.plan.max_rows);
    for (int q = item.query_begin; q < item.query_end; ++q) {
      for (int h = item.head_begin; h < item.head_end; ++h) {
        seen[{item.seq, q, h}].emplace_back(item.split_begin, item.split_end);
      }
    }
  }
  size_t expected = 0;
  for (size_t b = 0; b < call.q_lens.size(); ++b) {
    for (int q = 0; q < call.q_lens[b]; ++q) {
      const attention::KeyRange keys =
          attention::VisibleKeys(call.shape, call.kv_lens[b], call.kv_lens[b] - call.q_lens[b] + q);
      for (int h = 0; h < call.shape.kv_heads; ++h) {
        ++expected;
        const auto& splits = seen[{static_cast<int>(b), q, h}];
        ASSERT_FALSE(splits.empty());
        for (size_t i = 1; i < splits.size(); ++i) {
          ASSERT_EQ(splits[i].first, splits[i - 1].second);
        }
        if (call.kv_lens[b] > 0) {
          ASSERT_LE(splits.front().first * attention::kKvSplit, keys.begin);
          ASSERT_GE(splits.back().second * attention::kKvSplit, keys.end);
        }
      }
    }
  }
  ASSERT_EQ(seen.size(), expected);
  // Partial states lie side by side: one for the first item, then one for each KV split.
  int64_t state_rows = 0;
  for (const attention::DividedItem& divided : planned.divided_items) {
    ASSERT_EQ(divided.whole.state_row, state_rows);
    const int rows = (divided.whole.query_end - divided.whole.query_begin) * call.shape.group;
    state_rows +=
        divided.partial_states *
        attention::PartialStateRows(divided.whole.head_end - divided.whole.head_begin, rows);
  }
  ASSERT_EQ(state_rows, planned.plan.state_rows);
}

TEST(AttentionPlan, CoversEverythingOnce) {
  Rng rng(7);
  for (int i = 0; i < 400; ++i) {
    Call call{{static_cast<int>(rng.Between(1, 9)), static_cast<int>(rng.Between(1, 40)),
               static_cast<int>(8 * rng.Between(4, 64)),
               rng.OneIn(3) ? static_cast<int>(rng.Between(1, 2000)) : 0,
               rng.OneIn(3) ? static_cast<int>(rng.Between(-1, 700)) : 0},
              {},
              {},
              static_cast<int>(rng.Between(1, 40))};
    for (int64_t b = rng.Below(8); b > 0; --b) {
      call.kv_lens.push_back(
          static_cast<int>(rng.OneIn(5) ? 0 : rng.Below(rng.OneIn(3) ? 9000 : 600)));
      call.q_lens.push_back(static_cast<int>(rng.Below(std::min(call.kv_lens.back(), 300) + 2)));
      call.q_lens.back() = call.kv_lens.back() == 0
                               ? call.q_lens.back()
                               : std::min(call.q_lens.back(), call.kv_lens.back());
    }
    CheckPlan(call);
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionPlan, DecodeOfEqualSequencesIsNotCut) {
  const Call call{
      {8, 4, 128, 0, 0}, std::vector<int32_t>(32, 1), std::vector<int32_t>(32, 4096), 2};
  EXPECT_EQ(MakePlan(call).plan.divided_items, 0);
}

TEST(AttentionPlan, OneLongSequenceIsSharedEvenly) {
  for (const int threads : {2, 3, 8, 64}) {
    const Planned planned = MakePlan({{8, 4, 128, 0, 0}, {1}, {131072}, threads});
    int64_t total = 0;
    int64_t largest = 0;
    for (size_t s = 0; s + 1 < planned.chunk_begin.size(); ++s) {
      int64_t work = 0;
      for (int64_t u = planned.chunk_begin[s]; u < planned.chunk_begin[s + 1]; ++u) {
        work += Work(planned.items[static_cast<size_t>(u)]);
      }
      total += work;
      largest = std::max(largest, work);
    }
    EXPECT_LE(largest * planned.plan.chunks, total * 5 / 4) << threads;
    EXPECT_GE(planned.plan.chunks, threads);
  }
}

TEST(AttentionPlan, ShortSequenceIsCutBetweenHeads) {
  const Planned planned = MakePlan({{8, 4, 128, 0, 0}, {1}, {500}, 8});
  EXPECT_EQ(planned.plan.divided_items, 0);
  EXPECT_EQ(planned.plan.items, 8);
}

TEST(AttentionPlan, PrefillOfSmallHeadsTakesWideWorkItems) {
  const auto rows = [](int head_dim, int threads, int q_len) {
    return MakePlan({{8, 4, head_dim, 0, 0}, {q_len}, {4096}, threads}).plan.max_rows;
  };
  EXPECT_EQ(rows(128, 2, 2048), 512);
  EXPECT_EQ(rows(136, 2, 2048), 256);  // sums of 512 rows would not stay in L2
  EXPECT_EQ(rows(64, 16, 2048), 512);
  EXPECT_EQ(rows(64, 17, 2048), 256);  // 128 wide items are too few for these
  EXPECT_EQ(rows(128, 2, 20), 80);
}

TEST(AttentionPlan, OneThreadCutsNothing) {
  EXPECT_EQ(MakePlan({{8, 4, 128, 0, 0}, {1, 1}, {131072, 3}, 1}).plan.items, 2);
}

}  // namespace
}  // namespace riffle::test
