// Helpers that the tests of KvCache share.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "riffle/kv_cache.h"
#include "testing/error_check.h"
#include "testing/reference.h"

namespace riffle::test {

// The address of an element of a page.
inline const uint8_t* Element(const PagedKv& kv, int64_t page, int64_t token, int64_t head,
                              int64_t i) {
  const int64_t at = page * kv.page_stride + token * kv.token_stride + head * kv.head_stride + i;
  return static_cast<const uint8_t*>(kv.data) + at * static_cast<int64_t>(SizeOf(kv.dtype));
}

inline KvCacheOptions Small(int64_t pages = 4, int64_t page_size = 4) {
  KvCacheOptions options;
  options.kv_heads = 2;
  options.head_dim = 8;
  options.pages = pages;
  options.page_size = page_size;
  options.dtype = DType::kF32;
  return options;
}

// An array [tokens, kv_heads, head_dim] whose elements are all `value`.
struct Filled {
  Filled(const KvCacheOptions& o, int64_t tokens, float value)
      : memory(static_cast<size_t>(tokens * o.kv_heads * o.head_dim), value),
        view{memory.data(),           DType::kF32, tokens, o.kv_heads, o.head_dim,
             o.kv_heads * o.head_dim, o.head_dim} {}
  std::vector<float> memory;
  HeadsView view;
};

// The first element of the key at a position in layer 0.
inline double KeyAt(const KvCache& cache, int64_t seq, int64_t position) {
  const KvBatch batch = cache.Batch(std::vector<int64_t>{seq});
  const int64_t page_size = cache.options().page_size;
  const PagedKv keys = cache.Keys(0);
  return Decode(keys.dtype,
                Element(keys, batch.page_table[static_cast<size_t>(position / page_size)],
                        position % page_size, 0, 0));
}

}  // namespace riffle::test
