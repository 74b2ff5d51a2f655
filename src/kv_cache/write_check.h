// What WriteKv accepts.
#pragma once

#include "riffle/write_kv.h"

namespace riffle::kv_cache {

// Whether a pool may consist of such elements, and its scales be what they are; `name` begins the
// texts. Throws Error: kBadDType, kBadOption, kBadShape.
void CheckFormat(const char* name, const PagedKvOut& pages);

// Everything about a call but the slots' values. Throws Error: kBadShape, kBadDType, kBadOption,
// kOverlap. Takes the same time whatever the size of the pools, unless pools or scales of different
// strides interleave.
void CheckWrite(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
                const PagedKvOut& key_pages, const PagedKvOut& value_pages);

}  // namespace riffle::kv_cache
