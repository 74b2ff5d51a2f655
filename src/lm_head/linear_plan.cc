#include "lm_head/linear_plan.h"

#include <algorithm>

#include "lm_head/layout.h"
#include "topk/finish.h"

namespace riffle::lm_head {
namespace {

// Candidates of all rows of a pass, for each thread.
constexpr int64_t kCandidateBytes = int64_t{64} << 20;

}  // namespace

PiecePlan PlanPieces(int64_t vocab, int threads) {
  PiecePlan plan;
  plan.tiles = (vocab + kTile - 1) / kTile;
  // A few pieces for each thread, so that a thread that is held up does not hold up the call; long
  // enough that a piece's start, which the prefetches do not cover, does not count.
  constexpr int64_t kLeastTiles = 16;
  const int64_t pieces =
      std::clamp<int64_t>(plan.tiles / kLeastTiles, threads, int64_t{8} * threads);
  plan.tiles_per_piece = (plan.tiles + pieces - 1) / pieces;
  plan.pieces = (plan.tiles + plan.tiles_per_piece - 1) / plan.tiles_per_piece;
  return plan;
}

int64_t RowsPerPass(int64_t rows, int64_t limit) {
  const int64_t passes = std::max<int64_t>(1, (rows + limit - 1) / limit);
  return (rows + passes - 1) / passes;
}

TileScratch PlanTileScratch(int64_t rows) {
  Layout layout;
  TileScratch scratch;
  scratch.words = layout.Place(kSpan * kTile, 4);
  scratch.scales = layout.Place(kSpan / kQ8Block * kTile, 4);
  scratch.tails = layout.Place(kTile * kChunk, 4);
  scratch.bias = layout.Place(kTile, 4);
  scratch.sums = layout.Place(rows * kTile, 4);
  scratch.bytes = layout.end();
  return scratch;
}

CandidatePlan PlanCandidates(int64_t rows, int64_t k, const PiecePlan& pieces) {
  const int64_t columns = pieces.tiles_per_piece * kTile;
  CandidatePlan plan;
  plan.limit = std::min(columns, k + k / 4 + 16);
  plan.capacity = std::min(columns, 2 * plan.limit + 512);
  const int64_t fit = kCandidateBytes / (8 * plan.capacity);
  plan.rows = RowsPerPass(rows, std::clamp<int64_t>(fit, 1, kMaxRowsPerPass));
  return plan;
}

KeptLayout PlanKept(const CandidatePlan& plan, int64_t pieces) {
  Layout layout;
  KeptLayout kept;
  kept.counts = layout.Place(pieces * plan.rows, sizeof(int64_t));
  kept.bounds = layout.Place(plan.rows, sizeof(int32_t));
  kept.keys = layout.Place(pieces * plan.rows * plan.limit, sizeof(int32_t));
  kept.columns = layout.Place(pieces * plan.rows * plan.limit, sizeof(int32_t));
  kept.bytes = layout.end();
  return kept;
}

ListLayout PlanLists(const CandidatePlan& plan, size_t begin) {
  Layout layout(begin);
  ListLayout lists{};
  lists.stride = plan.capacity + static_cast<int64_t>(topk::kSlack);
  lists.keys = layout.Place(plan.rows * lists.stride, sizeof(int32_t));
  lists.columns = layout.Place(plan.rows * lists.stride, sizeof(int32_t));
  lists.counts = layout.Place(plan.rows, sizeof(int64_t));
  lists.bytes = layout.end();
  return lists;
}

ListLayout PlanOneList(int64_t most, size_t begin) {
  Layout layout(begin);
  ListLayout lists{};
  lists.stride = most + static_cast<int64_t>(topk::kSlack);
  lists.keys = layout.Place(lists.stride, sizeof(int32_t));
  lists.columns = layout.Place(lists.stride, sizeof(int32_t));
  lists.places = layout.Place(lists.stride, sizeof(int32_t));
  lists.pairs = layout.Place(2 * lists.stride, sizeof(uint64_t));
  lists.bytes = layout.end();
  return lists;
}

ListLayout PlanFinishLists(const CandidatePlan& plan, int64_t pieces) {
  return PlanOneList(pieces * plan.limit, 0);
}

}  // namespace riffle::lm_head
