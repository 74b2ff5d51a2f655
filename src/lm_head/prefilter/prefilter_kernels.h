// The kernels of PrefilterTopK.
#pragma once

#include <cstdint>

#include "lm_head/prefilter/prefilter_plan.h"

namespace riffle::lm_head {

// A chunk of W to search.
struct PrefilterChunk {
  PrefilterPlan plan;
  PrefilterScratch layout;
  SharedCandidates shared;
  int64_t k = 0;
  int64_t chunk = 0;
};

// A row whose candidates have been found.
struct PrefilteredRow {
  SharedCandidates shared;
  PrefilterFinish layout;
  int64_t row = 0;
  int64_t k = 0;
  float* values = nullptr;     // [k]
  int32_t* indices = nullptr;  // [k]
};

struct PrefilterKernels {
  // The fewest rows for which the prefilter is faster than multiplying every column; the largest
  // int64 on targets without int8 dot products, so that no call reaches it.
  int64_t min_rows;
  // Quantises row `row` of args.linear into args.x (in place: args.inplace) and args.errors.
  // Returns false if the row has a NaN, an infinity or a number of 2^64 or more, for which there
  // are no bounds.
  bool (*quantize_row)(const PrefilterArgs& args, int64_t row);
  // Searches tiles [begin, end) and merges each row's candidates into task.shared. `scratch` has
  // task.layout.bytes.
  void (*search_tiles)(const PrefilterArgs& args, int64_t begin, int64_t end,
                       const PrefilterChunk& task, uint8_t* scratch);
  // Multiplies a row's candidates exactly and writes the k best; returns how many were multiplied.
  // `scratch` has task.layout.bytes.
  int64_t (*finish_row)(const LinearArgs& args, const PrefilteredRow& task, uint8_t* scratch);
  // For tests: the bounds of a tile's logits, lower and upper [rows][kTile]. `scratch` has
  // layout.bytes.
  void (*tile_bounds)(const PrefilterArgs& args, int64_t tile, const BoundsScratch& layout,
                      uint8_t* scratch, float* lower, float* upper);
};
const PrefilterKernels& GetPrefilterKernels();

}  // namespace riffle::lm_head
