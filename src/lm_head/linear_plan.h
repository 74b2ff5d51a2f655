// Plans of the linear layer: pure functions of shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lm_head/linear_args.h"

namespace riffle::lm_head {

// W is cut into pieces of whole tiles; a piece is one task.
struct PiecePlan {
  int64_t tiles = 0;  // of all of W
  int64_t pieces = 0;
  int64_t tiles_per_piece = 0;  // the last piece may have fewer

  int64_t Begin(int64_t piece) const { return piece * tiles_per_piece; }
  int64_t End(int64_t piece) const {
    const int64_t end = (piece + 1) * tiles_per_piece;
    return end < tiles ? end : tiles;
  }
};
PiecePlan PlanPieces(int64_t vocab, int threads);

// Rows of x that go through W together: all, in as few passes of about the same size as `limit`
// rows at a time allow.
int64_t RowsPerPass(int64_t rows, int64_t limit);
inline constexpr int64_t kMaxRowsPerPass = 256;  // x of a span and the sums of a tile stay in L2

// Byte offsets into the scratch of a thread, each 64-byte aligned.
struct TileScratch {
  size_t words;   // [kSpan][kTile] words of W
  size_t scales;  // [kSpan / kQ8Block][kTile] f32
  size_t tails;   // [kTile][kChunk] elements
  size_t bias;    // [kTile] f32
  size_t sums;    // [rows][kTile] f32
  size_t bytes;
};
TileScratch PlanTileScratch(int64_t rows);

// How LinearTopK keeps candidates. A list grows to `capacity`, then is cut back to `limit`.
struct CandidatePlan {
  int64_t limit = 0;     // what a piece keeps of a row, at most
  int64_t capacity = 0;  // of a row while a piece runs
  int64_t rows = 0;      // a pass
};
CandidatePlan PlanCandidates(int64_t rows, int64_t k, const PiecePlan& pieces);

// Byte offsets into what the pieces leave for the finish: [pieces][rows] lists of at most `limit`.
struct KeptLayout {
  size_t counts;  // int64 [pieces][rows]
  size_t bounds;  // int32 [rows]
  size_t keys;    // int32 [pieces][rows][limit]
  size_t columns;
  size_t bytes;
};
KeptLayout PlanKept(const CandidatePlan& plan, int64_t pieces);

// Byte offsets into the scratch of a thread that runs a piece (behind the tile's), and of one that
// finishes a row.
struct ListLayout {
  size_t keys;     // [rows][stride] int32; of the finish: one row
  size_t columns;  // likewise
  size_t places;   // finish: [stride] int32
  size_t pairs;    // finish: [2 * stride] uint64
  size_t counts;   // [rows] int64
  int64_t stride;
  size_t bytes;
};
ListLayout PlanLists(const CandidatePlan& plan, size_t begin);
ListLayout PlanOneList(int64_t most, size_t begin);  // of `most` candidates, to be sorted
ListLayout PlanFinishLists(const CandidatePlan& plan, int64_t pieces);

}  // namespace riffle::lm_head
