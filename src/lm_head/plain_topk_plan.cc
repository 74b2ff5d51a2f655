#include "lm_head/plain_topk_plan.h"

#include <algorithm>

#include "select/limits.h"

namespace riffle::lm_head {

CandidatePlan PlanCandidates(int64_t rows, int64_t k, const ChunkPlan& chunks) {
  HWY_DASSERT(k > 0);
  const int64_t columns = chunks.tiles_per_chunk * kTile;
  CandidatePlan plan;
  plan.limit = std::min(columns, k + k / 4 + 16);
  plan.capacity = std::min(columns, 2 * plan.limit + 512);
  const int64_t fit = kCandidateBytes / (8 * plan.capacity);
  plan.rows = RowsPerPass(rows, std::clamp<int64_t>(fit, 1, kMaxRowsPerPass));
  return plan;
}

ListScratch PlanLists(const CandidatePlan& plan, size_t begin) {
  core::ScratchLayout layout(begin);
  ListScratch lists;
  lists.stride = plan.capacity + static_cast<int64_t>(select::kSlack);
  lists.keys = layout.Place<int32_t>(plan.rows * lists.stride);
  lists.columns = layout.Place<int32_t>(plan.rows * lists.stride);
  lists.counts = layout.Place<int64_t>(plan.rows);
  lists.bytes = layout.bytes();
  return lists;
}

KeptLayout PlanKept(const CandidatePlan& plan, int64_t chunks, size_t begin) {
  core::ScratchLayout layout(begin);
  KeptLayout kept;
  kept.counts = layout.Place<int64_t>(chunks * plan.rows);
  kept.bounds = layout.Place<std::atomic<int32_t>>(plan.rows);
  kept.keys = layout.Place<int32_t>(chunks * plan.rows * plan.limit);
  kept.columns = layout.Place<int32_t>(chunks * plan.rows * plan.limit);
  kept.bytes = layout.bytes();
  return kept;
}

}  // namespace riffle::lm_head
