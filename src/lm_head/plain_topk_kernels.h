// The kernels of PlainTopK.
#pragma once

#include <atomic>
#include <cstdint>

#include "lm_head/plain_topk_plan.h"

namespace riffle::lm_head {

// The candidates that the chunks of a pass found, in shared memory.
struct KeptLists {
  int64_t* counts = nullptr;  // [chunks][rows]
  std::atomic<int32_t>* bounds =
      nullptr;                 // [rows] a key that k logits of the row are known to reach
  int32_t* keys = nullptr;     // [chunks][rows][limit]
  int32_t* columns = nullptr;  // likewise
};

// A chunk of W to multiply and search.
struct ChunkTask {
  CandidatePlan plan;
  TileScratch tile;
  ListScratch lists;
  KeptLists kept;
  int64_t k = 0;
  int64_t chunk = 0;
};

// A row that all chunks have searched.
struct FinishTask {
  KeptLists kept;
  SortScratch layout;
  int64_t chunks = 0;
  int64_t rows = 0;  // in the pass
  int64_t row = 0;
  int64_t limit = 0;
  int64_t k = 0;
  float* values = nullptr;     // [k]
  int32_t* indices = nullptr;  // [k]
};

struct PlainTopKKernels {
  // Searches tiles [begin, end) and stores each row's candidates in task.kept. `scratch` has
  // task.lists.bytes.
  void (*search_tiles)(const LinearArgs& args, int64_t begin, int64_t end, const ChunkTask& task,
                       uint8_t* scratch);
  // Merges a row's lists and writes the k best. `scratch` has task.layout.bytes.
  void (*finish_row)(const FinishTask& task, uint8_t* scratch);
};
const PlainTopKKernels& GetPlainTopKKernels();

}  // namespace riffle::lm_head
