// Plans of the prefilter: pure functions of shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lm_head/linear_plan.h"
#include "lm_head/prefilter/prefilter_args.h"

namespace riffle::lm_head {

// A chunk's list of a row's candidates may grow to `capacity`; it is then pruned. If too many are
// left, the row falls back.
struct PrefilterPlan {
  int64_t limit = 0;            // a new bound is a key that k to `limit` candidates reach
  int64_t capacity = 0;         // of a row's list while a chunk is searched
  int64_t shared_capacity = 0;  // for the candidates of a row from all chunks
  int64_t rows = 0;             // in a pass
};
PrefilterPlan PlanPrefilter(int64_t rows, int64_t k);

// Whether the prefilter can be used at all.
bool CanPrefilter(const LinearArgs& args);
// Whether the prefilter is faster, on targets with int8 dot products: it saves time for each column
// of W and costs some for each of the k.
bool PrefilterPays(int64_t k, const LinearArgs& args);

// What a thread needs to compute bounds of a tile of logits.
struct BoundsScratch {
  core::ScratchArray<uint8_t> weights;  // [kPrefilterBlocks][kQ8Block / 4][kTile] lanes of 4 bytes
  core::ScratchArray<float> scales;     // [kPrefilterBlocks][kTile]
  core::ScratchArray<float> norms;      // [kTile]
  core::ScratchArray<float> bias;       // [kTile]
  core::ScratchArray<float> slack;      // [kTile] how much the bias widens the bounds
  core::ScratchArray<float> sums;       // [rows][kTile]
  int64_t rows = 0;
  size_t bytes = 0;
};
BoundsScratch PlanBounds(int64_t rows);

// The lists of a thread that searches a chunk, placed after its BoundsScratch.
struct PrefilterScratch {
  BoundsScratch tile;
  core::ScratchArray<int32_t> lowers;   // [rows][stride]
  core::ScratchArray<float> uppers;     // likewise
  core::ScratchArray<int32_t> columns;  // likewise
  core::ScratchArray<int64_t> counts;   // [rows]
  int64_t stride = 0;
  size_t bytes = 0;
};
PrefilterScratch PlanPrefilterScratch(const PrefilterPlan& plan);

// The quantised rows and the candidates in shared memory, placed from byte `begin` on.
struct PrefilterShared {
  core::ScratchArray<Int8Block> x;
  core::ScratchArray<InplaceLine> inplace;
  core::ScratchArray<ErrorBound> errors;
  core::ScratchArray<std::atomic<int32_t>> bounds;
  core::ScratchArray<std::atomic<int32_t>> locks;
  core::ScratchArray<std::atomic<int32_t>> fell_back;
  core::ScratchArray<std::atomic<int32_t>> remaining;
  core::ScratchArray<int64_t> counts;
  core::ScratchArray<int32_t> lowers;   // [rows][stride]
  core::ScratchArray<float> uppers;     // likewise
  core::ScratchArray<int32_t> columns;  // likewise
  int64_t stride = 0;
  size_t bytes = 0;
};
PrefilterShared PlanPrefilterShared(const PrefilterPlan& plan, int64_t d, size_t begin);

// What a thread needs to finish a row.
struct PrefilterFinish {
  TileScratch tile;                        // of one row
  core::ScratchArray<int32_t> candidates;  // [shared_capacity] columns
  SortScratch sort;
  size_t bytes = 0;
};
PrefilterFinish PlanPrefilterFinish(const PrefilterPlan& plan);

}  // namespace riffle::lm_head
