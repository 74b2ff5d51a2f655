#include "kv_cache/slots.h"

#include <hwy/base.h>

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "core/strided.h"

namespace riffle::kv_cache {

void CopySlots(const IndexSpan& slots, int64_t num_pages, int64_t page_size,
               std::span<int64_t> out) {
  HWY_DASSERT(slots.size() == out.size());
  const int64_t limit = core::SaturatingMul(num_pages, page_size);
  for (size_t t = 0; t < out.size(); ++t) {
    const int64_t slot = slots[t];
    core::Check(slot >= kSkipped && slot < limit, Code::kBadPage, "slots[", t, "] = ", slot,
                " is neither -1 nor in the pool of ", num_pages, " pages of ", page_size,
                ", whose last slot is ", limit - 1);
    out[t] = slot;
  }
}

SlotTable SlotTable::Place(int64_t tokens, core::ScratchLayout& layout) {
  SlotTable table;
  table.entries = static_cast<int64_t>(std::bit_ceil(2 * static_cast<uint64_t>(tokens)));
  table.tokens = layout.Place<int32_t>(table.entries);
  return table;
}

void SkipOverwritten(std::span<int64_t> slots, const SlotTable& table, uint8_t* memory) {
  // Ascending slots, such as those of a prompt in pages taken in order, have no duplicates.
  int64_t last = kSkipped;
  bool ascends = true;
  for (const int64_t slot : slots) {
    ascends &= slot > last || slot == kSkipped;
    last = std::max(last, slot);
  }
  if (ascends) {
    return;
  }
  // A hash table of tokens by their slots. It is filled from the last token, which wins.
  HWY_DASSERT(static_cast<size_t>(table.entries) > slots.size());
  int32_t* const entries = table.tokens.At(memory);
  std::fill(entries, entries + table.entries, -1);
  const auto mask = static_cast<uint64_t>(table.entries - 1);
  const int shift = 64 - std::countr_zero(static_cast<uint64_t>(table.entries));
  for (size_t t = slots.size(); t-- > 0;) {
    if (slots[t] == kSkipped) {
      continue;
    }
    // Fibonacci hashing spreads the slots of a page, which are neighbours.
    uint64_t at = static_cast<uint64_t>(slots[t]) * 0x9e3779b97f4a7c15u >> shift;
    while (entries[at] >= 0 && slots[static_cast<size_t>(entries[at])] != slots[t]) {
      at = (at + 1) & mask;
    }
    if (entries[at] >= 0) {
      slots[t] = kSkipped;
    } else {
      entries[at] = static_cast<int32_t>(t);
    }
  }
}

}  // namespace riffle::kv_cache
