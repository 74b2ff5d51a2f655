// Plans of the screen: pure functions of shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lm_head/linear_plan.h"
#include "lm_head/screen_args.h"

namespace riffle::lm_head {

// How LinearTopK screens. A row's list in a piece grows to `capacity`, then is cut back; if that
// leaves no room the row is given up.
struct ScreenPlan {
  int64_t limit = 0;     // FindBound looks for a bound that k to `limit` candidates reach
  int64_t capacity = 0;  // of a row while a piece runs
  int64_t room = 0;      // for the candidates of a row from all pieces
  int64_t rows = 0;      // a pass
};
ScreenPlan PlanScreen(int64_t rows, int64_t k);

// Whether screening is faster: it saves time for each column, and costs some for each of the k.
bool ScreenPays(int64_t k, const LinearArgs& args);

// Byte offsets into the scratch of a thread that screens a piece, each 64-byte aligned.
struct ScreenScratch {
  size_t words;    // [kScreenBlocks][kQ8Block / 4][kTile] words
  size_t scales;   // [kScreenBlocks][kTile] f32
  size_t norms;    // [kTile] f32
  size_t bias;     // [kTile] f32
  size_t slack;    // [kTile] f32, of the bias
  size_t sums;     // [rows][kTile] f32
  size_t lowers;   // [rows][stride] int32
  size_t uppers;   // [rows][stride] f32
  size_t columns;  // [rows][stride] int32
  size_t counts;   // [rows] int64
  int64_t stride;
  size_t bytes;
};
ScreenScratch PlanScreenScratch(const ScreenPlan& plan);

// Byte offsets into what all threads share.
struct ScreenShared {
  size_t x;
  size_t few;
  size_t errors;
  size_t bounds;
  size_t locks;
  size_t given_up;
  size_t left;
  size_t counts;
  size_t lowers;   // [rows][stride]
  size_t uppers;   // likewise
  size_t columns;  // likewise
  int64_t stride;
  size_t bytes;
};
ScreenShared PlanScreenShared(const ScreenPlan& plan, int64_t d);

// Byte offsets into the scratch of a thread that finishes a screened row.
struct ScreenFinish {
  TileScratch tile;
  ListLayout list;
  size_t candidates;  // [room] int32
  size_t bytes;
};
ScreenFinish PlanScreenFinish(const ScreenPlan& plan);

}  // namespace riffle::lm_head
