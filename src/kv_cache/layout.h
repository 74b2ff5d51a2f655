// Where a token's keys and values are in a page: a pure function of the options.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/kv_cache.h"
#include "riffle/write_kv.h"

namespace riffle::kv_cache {

// The keys, or the values, of a page: [kv_heads, page_size] rows, then the scales of these rows.
struct SideLayout {
  DType dtype = DType::kF32;  // kU8 for a block format
  KvFormat format = KvFormat::kPlain;
  int64_t head_dim = 0;
  int64_t groups = 0;  // scales per row; 0: none

  // Bytes.
  int64_t row = 0;     // one token of one head
  int64_t head = 0;    // one tile: page_size rows
  int64_t begin = 0;   // from the start of a page
  int64_t scales = 0;  // the first scale, from the start of a page
};

struct KvLayout {
  SideLayout keys;
  SideLayout values;
  // Bytes.
  int64_t page = 0;   // from a page to the next: keys and values
  int64_t layer = 0;  // from a layer to the next, a multiple of 64
  int64_t total = 0;

  // Throws Error: kBadShape, kBadDType, kBadOption, kOutOfMemory if the total is beyond the address
  // space.
  static KvLayout FromOptions(const KvCacheOptions& options);

  // The pages of a layer whose memory begins at `data`, to be written with computed scales.
  PagedKvOut View(const KvCacheOptions& options, const SideLayout& side, uint8_t* data) const;
};

}  // namespace riffle::kv_cache
