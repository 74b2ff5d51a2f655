// How LinearTopK keeps candidates when it multiplies every column: pure functions of shapes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "lm_head/linear_plan.h"

namespace riffle::lm_head {

// A chunk's list of a row's candidates may grow to `capacity`; it is then pruned to `limit`.
struct CandidatePlan {
  int64_t limit = 0;     // how many candidates of a row a chunk may keep in the end
  int64_t capacity = 0;  // of the list while the chunk is searched
  int64_t rows = 0;      // in a pass
};
CandidatePlan PlanCandidates(int64_t rows, int64_t k, const ChunkPlan& chunks);

// The lists of a thread that searches a chunk, placed after its TileScratch.
struct ListScratch {
  core::ScratchArray<int32_t> keys;     // [rows][stride]
  core::ScratchArray<int32_t> columns;  // likewise
  core::ScratchArray<int64_t> counts;   // [rows]
  int64_t stride = 0;
  size_t bytes = 0;
};
ListScratch PlanLists(const CandidatePlan& plan, size_t begin);

// What all chunks store in shared memory, placed from byte `begin` on.
struct KeptLayout {
  core::ScratchArray<int64_t> counts;               // [chunks][rows]
  core::ScratchArray<std::atomic<int32_t>> bounds;  // [rows]
  core::ScratchArray<int32_t> keys;                 // [chunks][rows][limit]
  core::ScratchArray<int32_t> columns;              // likewise
  size_t bytes = 0;
};
KeptLayout PlanKept(const CandidatePlan& plan, int64_t chunks, size_t begin);

}  // namespace riffle::lm_head
