#include "lm_head/screen_plan.h"

#include <algorithm>

#include "lm_head/layout.h"
#include "topk/finish.h"

namespace riffle::lm_head {
namespace {

// Candidates of all rows of a pass.
constexpr int64_t kCandidateBytes = int64_t{64} << 20;

}  // namespace

ScreenPlan PlanScreen(int64_t rows, int64_t k) {
  ScreenPlan plan;
  plan.limit = k + k / 4 + 16;
  plan.capacity = 2 * plan.limit + 768;
  plan.room = 8 * k + 2048;
  const int64_t fit = kCandidateBytes / (12 * std::max(plan.room, plan.capacity));
  plan.rows = RowsPerPass(rows, std::clamp<int64_t>(fit, 1, kMaxRowsPerPass));
  return plan;
}

bool ScreenPays(int64_t k, const LinearArgs& args) {
  // A candidate takes about 50 ns, a column of a row 1 to 2 ns less than without the screen.
  return args.format == WeightFormat::kQ8_0 && args.d > 0 && args.d <= kMostScreenedInputs &&
         args.vocab >= 8192 && k <= args.vocab / 64;
}

ScreenScratch PlanScreenScratch(const ScreenPlan& plan) {
  Layout layout;
  ScreenScratch scratch{};
  scratch.words = layout.Place(kScreenBlocks * kQ8Block / 4 * kTile, sizeof(uint32_t));
  scratch.scales = layout.Place(kScreenBlocks * kTile, sizeof(float));
  scratch.norms = layout.Place(kTile, sizeof(float));
  scratch.bias = layout.Place(kTile, sizeof(float));
  scratch.slack = layout.Place(kTile, sizeof(float));
  scratch.sums = layout.Place(plan.rows * kTile, sizeof(float));
  scratch.stride = plan.capacity + static_cast<int64_t>(topk::kSlack);
  scratch.lowers = layout.Place(plan.rows * scratch.stride, sizeof(int32_t));
  scratch.uppers = layout.Place(plan.rows * scratch.stride, sizeof(float));
  scratch.columns = layout.Place(plan.rows * scratch.stride, sizeof(int32_t));
  scratch.counts = layout.Place(plan.rows, sizeof(int64_t));
  scratch.bytes = layout.end();
  return scratch;
}

ScreenShared PlanScreenShared(const ScreenPlan& plan, int64_t d) {
  const int64_t span = kScreenBlocks * kQ8Block;
  Layout layout;
  ScreenShared shared{};
  shared.x = layout.Place((d + span - 1) / span * plan.rows * kScreenBlocks, sizeof(ScreenBlock));
  shared.few = layout.Place(FewScreenChunks(d) * std::min<int64_t>(plan.rows, kFewScreenRows),
                            sizeof(FewScreenChunk));
  shared.errors = layout.Place(plan.rows, sizeof(ScreenError));
  shared.bounds = layout.Place(plan.rows, sizeof(int32_t));
  shared.locks = layout.Place(plan.rows, sizeof(int32_t));
  shared.given_up = layout.Place(plan.rows, sizeof(int32_t));
  shared.left = layout.Place(1, sizeof(int32_t));
  shared.counts = layout.Place(plan.rows, sizeof(int64_t));
  shared.stride = plan.room + static_cast<int64_t>(topk::kSlack);
  shared.lowers = layout.Place(plan.rows * shared.stride, sizeof(int32_t));
  shared.uppers = layout.Place(plan.rows * shared.stride, sizeof(float));
  shared.columns = layout.Place(plan.rows * shared.stride, sizeof(int32_t));
  shared.bytes = layout.end();
  return shared;
}

ScreenFinish PlanScreenFinish(const ScreenPlan& plan) {
  ScreenFinish finish{};
  finish.tile = PlanTileScratch(1);
  Layout layout(finish.tile.bytes);
  finish.candidates = layout.Place(plan.room, sizeof(int32_t));
  finish.list = PlanOneList(plan.room, layout.end());
  finish.bytes = finish.list.bytes;
  return finish;
}

}  // namespace riffle::lm_head
