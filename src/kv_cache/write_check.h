// The argument checks of WriteKv.
#pragma once

#include "riffle/write_kv.h"

namespace riffle::kv_cache {

// Checks the dtype, format and kind of scales of a pool; `name` begins the error texts. Throws
// Error: kBadDType, kBadOption, kBadShape.
void CheckFormat(const char* name, const PagedKvOut& pages);

// Checks everything about a call except the values of slots. Throws Error: kBadShape, kBadDType,
// kBadOption, kOverlap. Takes the same time for pools of any size, unless pools or scales of
// different strides interleave.
void CheckWrite(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
                const PagedKvOut& key_pages, const PagedKvOut& value_pages);

}  // namespace riffle::kv_cache
