// The page pool for C.
#include "riffle/kv_cache.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "c_api/convert.h"
#include "core/strided.h"

namespace riffle::c_api {
namespace {

KvCacheOptions ToOptions(const riffle_kv_cache_options* in) {
  const riffle_kv_cache_options options = ReadSized("options", in);
  KvCacheOptions result;
  result.layers = options.layers;
  result.kv_heads = options.kv_heads;
  result.head_dim = options.head_dim;
  result.pages = options.pages;
  result.page_size = options.page_size;
  result.value_dim = options.value_dim;
  result.scale_group = options.scale_group;
  result.dtype = ToDType("options", options.dtype);
  result.format = ToKvFormat("options", options.format);
  result.scale_dtype = ToDType("scale", options.scale_dtype);
  if (ToBool("separate_values", options.separate_values)) {
    result.value_dtype = ToDType("value", options.value_dtype);
    result.value_format = ToKvFormat("value", options.value_format);
  }
  return result;
}

std::vector<BlockKey> ToBlockKeys(const riffle_block_key* keys, int64_t num_keys) {
  std::vector<BlockKey> converted;
  for (const riffle_block_key& key : ToSpan("keys", keys, num_keys)) {
    converted.push_back({{key.words[0], key.words[1]}});
  }
  return converted;
}

KvBatch BatchOf(const riffle_kv_cache* cache, const int64_t* seqs, int64_t num_seqs) {
  return NotNull("cache", cache).cache.Batch(ToSpan("seqs", seqs, num_seqs));
}

riffle_kv_cache_info InfoOf(const KvCache& cache) {
  const KvCacheStats stats = cache.stats();
  return {sizeof(riffle_kv_cache_info), cache.sequences(),       cache.pages_free(),
          cache.pages_used(),           cache.pages_shared(),    cache.bytes(),
          stats.blocks_wanted,          stats.blocks_found,      stats.pages_evicted,
          stats.pages_copied,           stats.pages_swapped_out, stats.pages_swapped_in,
          stats.pages_reusable};
}

}  // namespace
}  // namespace riffle::c_api

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file belongs to it

riffle_status riffle_kv_cache_create(const riffle_kv_cache_options* options,
                                     riffle_kv_cache** cache) {
  return Guarded([&] {
    NotNull("cache", cache);
    *cache = new riffle_kv_cache{riffle::KvCache(ToOptions(options))};
  });
}

void riffle_kv_cache_destroy(riffle_kv_cache* cache) { delete cache; }

riffle_status riffle_kv_cache_add(riffle_kv_cache* cache, int64_t* seq) {
  return riffle_kv_cache_add_from_blocks(cache, nullptr, 0, seq);
}

riffle_status riffle_kv_cache_fork(riffle_kv_cache* cache, int64_t seq, int64_t* forked) {
  return Guarded([&] {
    NotNull("forked", forked);
    *forked = NotNull("cache", cache).cache.Fork(seq);
  });
}

riffle_status riffle_kv_cache_extend(riffle_kv_cache* cache, int64_t seq, int64_t tokens) {
  return Guarded([&] { NotNull("cache", cache).cache.Extend(seq, tokens); });
}

riffle_status riffle_kv_cache_truncate(riffle_kv_cache* cache, int64_t seq, int64_t length) {
  return Guarded([&] { NotNull("cache", cache).cache.Truncate(seq, length); });
}

riffle_status riffle_kv_cache_free(riffle_kv_cache* cache, int64_t seq) {
  return Guarded([&] { NotNull("cache", cache).cache.Free(seq); });
}

riffle_status riffle_kv_cache_length(const riffle_kv_cache* cache, int64_t seq, int64_t* length) {
  return Guarded([&] {
    NotNull("length", length);
    *length = NotNull("cache", cache).cache.Length(seq);
  });
}

riffle_status riffle_kv_cache_write(riffle_kv_cache* cache, int64_t layer, int64_t seq,
                                    int64_t position, const riffle_heads* keys,
                                    const riffle_heads* values, riffle_thread_pool* pool) {
  return Guarded([&] {
    NotNull("cache", cache)
        .cache.Write(layer, seq, position, ToHeads("keys", keys), ToHeads("values", values),
                     {ToPool(pool)});
  });
}

riffle_status riffle_kv_cache_max_pages(const riffle_kv_cache* cache, const int64_t* seqs,
                                        int64_t num_seqs, int64_t* max_pages) {
  return Guarded([&] {
    NotNull("max_pages", max_pages);
    *max_pages = BatchOf(cache, seqs, num_seqs).max_pages;
  });
}

riffle_status riffle_kv_cache_batch(const riffle_kv_cache* cache, const int64_t* seqs,
                                    int64_t num_seqs, int32_t* kv_lens, int32_t* page_table,
                                    int64_t max_pages) {
  return Guarded([&] {
    const riffle::KvBatch batch = BatchOf(cache, seqs, num_seqs);
    riffle::core::Check(max_pages >= batch.max_pages, riffle::Code::kBadShape,
                        "max_pages = ", max_pages, " but a sequence has ", batch.max_pages);
    ToSpan("kv_lens", kv_lens, num_seqs);
    CheckedCount("page_table", riffle::core::SaturatingMul(num_seqs, max_pages));
    riffle::core::Check(page_table != nullptr || num_seqs == 0 || max_pages == 0,
                        riffle::Code::kBadShape, "page_table is null");
    std::copy(batch.kv_lens.begin(), batch.kv_lens.end(), kv_lens);
    for (int64_t i = 0; i < num_seqs; ++i) {
      const auto row = batch.page_table.begin() + i * batch.max_pages;
      int32_t* end = std::copy(row, row + batch.max_pages, page_table + i * max_pages);
      std::fill(end, page_table + (i + 1) * max_pages, -1);
    }
  });
}

riffle_status riffle_kv_cache_keys(const riffle_kv_cache* cache, int64_t layer,
                                   riffle_paged_kv* kv) {
  return Guarded(
      [&] { WriteSized("kv", FromPagedKv(NotNull("cache", cache).cache.Keys(layer)), kv); });
}

riffle_status riffle_kv_cache_values(const riffle_kv_cache* cache, int64_t layer,
                                     riffle_paged_kv* kv) {
  return Guarded(
      [&] { WriteSized("kv", FromPagedKv(NotNull("cache", cache).cache.Values(layer)), kv); });
}

riffle_status riffle_kv_cache_get_info(const riffle_kv_cache* cache, riffle_kv_cache_info* info) {
  return Guarded([&] { WriteSized("info", InfoOf(NotNull("cache", cache).cache), info); });
}

riffle_status riffle_kv_cache_add_from_blocks(riffle_kv_cache* cache, const riffle_block_key* keys,
                                              int64_t num_keys, int64_t* seq) {
  return Guarded([&] {
    NotNull("seq", seq);
    riffle::KvCache& pages = NotNull("cache", cache).cache;
    *seq = num_keys == 0 ? pages.Create() : pages.Create(ToBlockKeys(keys, num_keys));
  });
}

riffle_status riffle_kv_cache_lookup(const riffle_kv_cache* cache, const riffle_block_key* keys,
                                     int64_t num_keys, int64_t* tokens) {
  return Guarded([&] {
    NotNull("tokens", tokens);
    *tokens = NotNull("cache", cache).cache.Lookup(ToBlockKeys(keys, num_keys));
  });
}

riffle_status riffle_kv_cache_set_block_keys(riffle_kv_cache* cache, int64_t seq,
                                             const riffle_block_key* keys, int64_t num_keys) {
  return Guarded(
      [&] { NotNull("cache", cache).cache.SetBlockKeys(seq, ToBlockKeys(keys, num_keys)); });
}

riffle_status riffle_kv_cache_swap_bytes(const riffle_kv_cache* cache, int64_t seq,
                                         int64_t* bytes) {
  return Guarded([&] {
    NotNull("bytes", bytes);
    *bytes = NotNull("cache", cache).cache.SwapBytes(seq);
  });
}

riffle_status riffle_kv_cache_swap_out(riffle_kv_cache* cache, int64_t seq, void* memory,
                                       int64_t bytes, riffle_thread_pool* pool) {
  return Guarded([&] {
    NotNull("cache", cache)
        .cache.SwapOut(seq, ToSpan("memory", static_cast<uint8_t*>(memory), bytes), {ToPool(pool)});
  });
}

riffle_status riffle_kv_cache_swap_in(riffle_kv_cache* cache, int64_t seq, const void* memory,
                                      int64_t bytes, riffle_thread_pool* pool) {
  return Guarded([&] {
    NotNull("cache", cache)
        .cache.SwapIn(seq, ToSpan("memory", static_cast<const uint8_t*>(memory), bytes),
                      {ToPool(pool)});
  });
}
