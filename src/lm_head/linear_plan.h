// Plans that all ways through the linear layer share: pure functions of shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/scratch_layout.h"
#include "lm_head/linear_args.h"

namespace riffle::lm_head {

// W is cut into chunks of whole tiles; a chunk is one task of the pool.
struct ChunkPlan {
  int64_t tiles = 0;  // in all of W
  int64_t chunks = 0;
  int64_t tiles_per_chunk = 0;  // the last chunk may have fewer

  int64_t Begin(int64_t chunk) const { return chunk * tiles_per_chunk; }
  int64_t End(int64_t chunk) const {
    const int64_t end = (chunk + 1) * tiles_per_chunk;
    return end < tiles ? end : tiles;
  }
};
ChunkPlan PlanChunks(int64_t vocab, int threads);

// How many rows of x each pass over W takes: there are as few passes as `limit` rows per pass
// allow, and they take about the same number of rows.
int64_t RowsPerPass(int64_t rows, int64_t limit);
inline constexpr int64_t kMaxRowsPerPass = 256;  // a k block of x and a tile's sums stay in L2
// Limits the bytes of the candidates of all rows of a pass, per thread and in shared memory.
inline constexpr int64_t kCandidateBytes = int64_t{64} << 20;

// What a thread needs to compute tiles of logits.
struct TileScratch {
  core::ScratchArray<uint32_t> operands;  // [kTile / panel][kKBlock][panel] packed operands of W
  core::ScratchArray<float> scales;       // [kKBlock / kQ8Block][kTile]
  core::ScratchArray<uint8_t> tails;      // [kTile][kInputGroup] elements
  core::ScratchArray<float> bias;         // [kTile]
  core::ScratchArray<float> sums;         // [rows][kTile]
  int64_t rows = 0;
  size_t bytes = 0;
};
TileScratch PlanTileScratch(int64_t rows);

// What a thread needs to sort one row's candidates, placed from byte `begin` of its scratch on.
struct SortScratch {
  core::ScratchArray<int32_t> keys;       // [capacity + slack], so that whole vectors may be stored
  core::ScratchArray<int32_t> columns;    // likewise
  core::ScratchArray<int32_t> positions;  // likewise
  core::ScratchArray<uint64_t> pairs;     // [2 * (capacity + slack)]
  int64_t capacity = 0;
  size_t bytes = 0;
};
SortScratch PlanSort(int64_t capacity, size_t begin);

}  // namespace riffle::lm_head
