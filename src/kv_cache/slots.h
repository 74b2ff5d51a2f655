// The slots of a write: checked copies, and which of equal ones counts.
#pragma once

#include <cstdint>
#include <span>

#include "core/scratch_layout.h"
#include "riffle/indices.h"

namespace riffle::kv_cache {

inline constexpr int64_t kSkipped = -1;

// Copies the list, which another thread may change meanwhile, into `out` of the same size. Throws
// Error(kBadPage) for what is neither -1 nor below the pool's `page_size` * `num_pages` slots.
void CopySlots(const IndexSpan& slots, int64_t num_pages, int64_t page_size,
               std::span<int64_t> out);

// Memory of SkipOverwritten for `tokens` slots.
struct SlotTable {
  int64_t entries = 0;  // a power of two, at least twice the tokens
  core::ScratchArray<int32_t> tokens;

  static SlotTable Place(int64_t tokens, core::ScratchLayout& layout);
};

// Turns each slot that comes again later in the list into kSkipped, so that the others may be
// written in any order. `memory` is the block that the table was placed in.
void SkipOverwritten(std::span<int64_t> slots, const SlotTable& table, uint8_t* memory);

}  // namespace riffle::kv_cache
