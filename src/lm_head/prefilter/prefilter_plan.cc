#include "lm_head/prefilter/prefilter_plan.h"

#include <algorithm>

#include "select/limits.h"

namespace riffle::lm_head {

PrefilterPlan PlanPrefilter(int64_t rows, int64_t k) {
  HWY_DASSERT(k > 0);
  PrefilterPlan plan;
  plan.limit = k + k / 4 + 16;
  plan.capacity = 2 * plan.limit + 768;
  plan.shared_capacity = 8 * k + 2048;
  const int64_t fit = kCandidateBytes / (12 * std::max(plan.shared_capacity, plan.capacity));
  plan.rows = RowsPerPass(rows, std::clamp<int64_t>(fit, 1, kMaxRowsPerPass));
  return plan;
}

bool CanPrefilter(const LinearArgs& args) {
  return args.format == WeightFormat::kQ8_0 && args.d > 0 && args.d <= kMaxPrefilterInputs;
}

bool PrefilterPays(int64_t k, const LinearArgs& args) {
  // A candidate costs about 50 ns; the prefilter saves 1 to 2 ns for each column of a row.
  return CanPrefilter(args) && args.vocab >= 8192 && k <= args.vocab / 64;
}

BoundsScratch PlanBounds(int64_t rows) {
  core::ScratchLayout layout;
  BoundsScratch scratch;
  scratch.weights = layout.Place<uint8_t>(kPrefilterBlocks * kQ8Block * kTile);
  scratch.scales = layout.Place<float>(kPrefilterBlocks * kTile);
  scratch.norms = layout.Place<float>(kTile);
  scratch.bias = layout.Place<float>(kTile);
  scratch.slack = layout.Place<float>(kTile);
  scratch.sums = layout.Place<float>(rows * kTile);
  scratch.rows = rows;
  scratch.bytes = layout.bytes();
  return scratch;
}

PrefilterScratch PlanPrefilterScratch(const PrefilterPlan& plan) {
  PrefilterScratch scratch;
  scratch.tile = PlanBounds(plan.rows);
  core::ScratchLayout layout(scratch.tile.bytes);
  scratch.stride = plan.capacity + static_cast<int64_t>(select::kSlack);
  scratch.lowers = layout.Place<int32_t>(plan.rows * scratch.stride);
  scratch.uppers = layout.Place<float>(plan.rows * scratch.stride);
  scratch.columns = layout.Place<int32_t>(plan.rows * scratch.stride);
  scratch.counts = layout.Place<int64_t>(plan.rows);
  scratch.bytes = layout.bytes();
  return scratch;
}

PrefilterShared PlanPrefilterShared(const PrefilterPlan& plan, int64_t d, size_t begin) {
  const int64_t group = kPrefilterBlocks * kQ8Block;
  core::ScratchLayout layout(begin);
  PrefilterShared shared;
  shared.x = layout.Place<Int8Block>((d + group - 1) / group * plan.rows * kPrefilterBlocks);
  shared.inplace =
      layout.Place<InplaceLine>(InplaceLines(d) * std::min<int64_t>(plan.rows, kInplaceRows));
  shared.errors = layout.Place<ErrorBound>(plan.rows);
  shared.bounds = layout.Place<std::atomic<int32_t>>(plan.rows);
  shared.locks = layout.Place<std::atomic<int32_t>>(plan.rows);
  shared.fell_back = layout.Place<std::atomic<int32_t>>(plan.rows);
  shared.remaining = layout.Place<std::atomic<int32_t>>(1);
  shared.counts = layout.Place<int64_t>(plan.rows);
  shared.stride = plan.shared_capacity + static_cast<int64_t>(select::kSlack);
  shared.lowers = layout.Place<int32_t>(plan.rows * shared.stride);
  shared.uppers = layout.Place<float>(plan.rows * shared.stride);
  shared.columns = layout.Place<int32_t>(plan.rows * shared.stride);
  shared.bytes = layout.bytes();
  return shared;
}

PrefilterFinish PlanPrefilterFinish(const PrefilterPlan& plan) {
  PrefilterFinish finish;
  finish.tile = PlanTileScratch(1);
  core::ScratchLayout layout(finish.tile.bytes);
  finish.candidates = layout.Place<int32_t>(plan.shared_capacity);
  finish.sort = PlanSort(plan.shared_capacity, layout.bytes());
  finish.bytes = finish.sort.bytes;
  return finish;
}

}  // namespace riffle::lm_head
