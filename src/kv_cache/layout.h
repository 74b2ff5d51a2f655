// Where a token's keys and values lie. Pure.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/kv_cache.h"

namespace riffle::kv_cache {

// Bytes. Per layer [pages, keys and values, kv_heads, page_size, head_dim].
struct KvLayout {
  int64_t token = 0;   // one token of one head: head_dim elements
  int64_t head = 0;    // one tile: page_size tokens
  int64_t values = 0;  // from a page's keys to its values
  int64_t page = 0;    // from a page to the next: keys and values
  int64_t layer = 0;   // from a layer to the next, a multiple of 64
  int64_t total = 0;

  // Throws Error: kBadShape, kBadOption, kOutOfMemory if the total is beyond the address space.
  static KvLayout Of(const KvCacheOptions& options);
};

}  // namespace riffle::kv_cache
