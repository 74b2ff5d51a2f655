// The slots of a write: checked copies, and which of several tokens for one slot is written.
#pragma once

#include <cstdint>
#include <span>

#include "core/scratch_layout.h"
#include "riffle/indices.h"

namespace riffle::kv_cache {

inline constexpr int64_t kSkipped = -1;

// Copies the list into `out` of the same size, as another thread may change the list meanwhile.
// Throws Error(kBadPage) for a slot that is neither -1 nor in [0, page_size * num_pages).
void CopySlots(const IndexSpan& slots, int64_t num_pages, int64_t page_size,
               std::span<int64_t> out);

// The memory that SkipOverwritten needs for `tokens` slots.
struct SlotTable {
  int64_t entries = 0;  // a power of two, at least twice the tokens
  core::ScratchArray<int32_t> tokens;

  static SlotTable Place(int64_t tokens, core::ScratchLayout& layout);
};

// Turns each slot that appears again later in the list into kSkipped, so that the others may be
// written in any order. `memory` is the block that the table was placed in.
void SkipOverwritten(std::span<int64_t> slots, const SlotTable& table, uint8_t* memory);

}  // namespace riffle::kv_cache
