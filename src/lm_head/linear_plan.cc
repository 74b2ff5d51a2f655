#include "lm_head/linear_plan.h"

#include <algorithm>

#include "select/limits.h"

namespace riffle::lm_head {

ChunkPlan PlanChunks(int64_t vocab, int threads) {
  HWY_DASSERT(vocab > 0 && threads > 0);
  ChunkPlan plan;
  plan.tiles = (vocab + kTile - 1) / kTile;
  // Several chunks per thread, so that one slow thread does not delay the call. Each is long enough
  // that its first tile, which nothing has prefetched, does not matter.
  constexpr int64_t kMinTiles = 16;
  const int64_t chunks = std::clamp<int64_t>(plan.tiles / kMinTiles, threads, int64_t{8} * threads);
  plan.tiles_per_chunk = (plan.tiles + chunks - 1) / chunks;
  plan.chunks = (plan.tiles + plan.tiles_per_chunk - 1) / plan.tiles_per_chunk;
  return plan;
}

int64_t RowsPerPass(int64_t rows, int64_t limit) {
  HWY_DASSERT(rows >= 0 && limit > 0);
  const int64_t passes = std::max<int64_t>(1, (rows + limit - 1) / limit);
  return (rows + passes - 1) / passes;
}

TileScratch PlanTileScratch(int64_t rows) {
  core::ScratchLayout layout;
  TileScratch scratch;
  scratch.operands = layout.Place<uint32_t>(kKBlock * kTile);
  scratch.scales = layout.Place<float>(kKBlock / kQ8Block * kTile);
  scratch.tails = layout.Place<uint8_t>(kTile * kInputGroup * 4);
  scratch.bias = layout.Place<float>(kTile);
  scratch.sums = layout.Place<float>(rows * kTile);
  scratch.rows = rows;
  scratch.bytes = layout.bytes();
  return scratch;
}

SortScratch PlanSort(int64_t capacity, size_t begin) {
  core::ScratchLayout layout(begin);
  const int64_t size = capacity + static_cast<int64_t>(select::kSlack);
  SortScratch scratch;
  scratch.keys = layout.Place<int32_t>(size);
  scratch.columns = layout.Place<int32_t>(size);
  scratch.positions = layout.Place<int32_t>(size);
  scratch.pairs = layout.Place<uint64_t>(2 * size);
  scratch.capacity = capacity;
  scratch.bytes = layout.bytes();
  return scratch;
}

}  // namespace riffle::lm_head
