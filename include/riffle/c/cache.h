// riffle::KvCache for C: a pool of pages of keys and values, shared by sequences. What the calls
// do: riffle/kv_cache.h. How they fail, how structs grow: riffle/c/riffle.h, which includes this.
#ifndef RIFFLE_C_CACHE_H_
#define RIFFLE_C_CACHE_H_

#include "riffle/c/common.h"
#include "riffle/c/paged_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct riffle_kv_cache riffle_kv_cache;

typedef struct riffle_kv_cache_options {
  size_t size;
  int64_t layers;  // these five have no default
  int64_t kv_heads;
  int64_t head_dim;
  int64_t pages;
  int64_t page_size;
  int64_t value_dim;         // 0: head_dim
  int64_t scale_group;       // 0: the whole row
  riffle_dtype dtype;        // of keys, and of values unless separate_values
  riffle_kv_format format;   // other than RIFFLE_KV_PLAIN: dtype is ignored
  riffle_dtype scale_dtype;  // for e4m3, e5m2 and i8
  int32_t separate_values;   // 1: values are kept as the next two members say
  riffle_dtype value_dtype;
  riffle_kv_format value_format;
} riffle_kv_cache_options;

RIFFLE_API riffle_status riffle_kv_cache_create(const riffle_kv_cache_options* options,
                                                riffle_kv_cache** cache);
RIFFLE_API void riffle_kv_cache_destroy(riffle_kv_cache* cache);  // null: does nothing

// Sequences. Ids are above zero.
RIFFLE_API riffle_status riffle_kv_cache_add(riffle_kv_cache* cache, int64_t* seq);
RIFFLE_API riffle_status riffle_kv_cache_fork(riffle_kv_cache* cache, int64_t seq, int64_t* forked);
RIFFLE_API riffle_status riffle_kv_cache_extend(riffle_kv_cache* cache, int64_t seq,
                                                int64_t tokens);
RIFFLE_API riffle_status riffle_kv_cache_truncate(riffle_kv_cache* cache, int64_t seq,
                                                  int64_t length);
RIFFLE_API riffle_status riffle_kv_cache_free(riffle_kv_cache* cache, int64_t seq);
RIFFLE_API riffle_status riffle_kv_cache_length(const riffle_kv_cache* cache, int64_t seq,
                                                int64_t* length);

// Writes keys and values of the positions from `position` on in one layer.
RIFFLE_API riffle_status riffle_kv_cache_write(riffle_kv_cache* cache, int64_t layer, int64_t seq,
                                               int64_t position, const riffle_heads* keys,
                                               const riffle_heads* values,
                                               riffle_thread_pool* pool);

// The largest number of pages of any of the sequences.
RIFFLE_API riffle_status riffle_kv_cache_max_pages(const riffle_kv_cache* cache,
                                                   const int64_t* seqs, int64_t num_seqs,
                                                   int64_t* max_pages);
// Lengths and page numbers of the sequences: kv_lens [num_seqs], page_table [num_seqs, max_pages],
// -1 after a sequence's last page. RIFFLE_BAD_SHAPE if max_pages is too small.
RIFFLE_API riffle_status riffle_kv_cache_batch(const riffle_kv_cache* cache, const int64_t* seqs,
                                               int64_t num_seqs, int32_t* kv_lens,
                                               int32_t* page_table, int64_t max_pages);

// A layer's keys and values, for riffle_paged_attention; valid as long as the cache. kv->size is
// set by the caller. Riffle alone writes to this memory.
RIFFLE_API riffle_status riffle_kv_cache_keys(const riffle_kv_cache* cache, int64_t layer,
                                              riffle_paged_kv* kv);
RIFFLE_API riffle_status riffle_kv_cache_values(const riffle_kv_cache* cache, int64_t layer,
                                                riffle_paged_kv* kv);

typedef struct riffle_kv_cache_info {
  size_t size;
  int64_t sequences;
  int64_t pages_free;
  int64_t pages_used;
  int64_t pages_shared;
  int64_t bytes;
  int64_t blocks_wanted;  // these and the following: riffle::KvCacheStats
  int64_t blocks_found;
  int64_t pages_evicted;
  int64_t pages_copied;
  int64_t pages_swapped_out;
  int64_t pages_swapped_in;
  int64_t pages_reusable;
} riffle_kv_cache_info;
// info->size is set by the caller.
RIFFLE_API riffle_status riffle_kv_cache_get_info(const riffle_kv_cache* cache,
                                                  riffle_kv_cache_info* info);

// Block keys: the caller's names for the contents of pages, by which later sequences reuse them.
typedef struct riffle_block_key {
  uint64_t words[2];
} riffle_block_key;
RIFFLE_API riffle_status riffle_kv_cache_add_from_blocks(riffle_kv_cache* cache,
                                                         const riffle_block_key* keys,
                                                         int64_t num_keys, int64_t* seq);
RIFFLE_API riffle_status riffle_kv_cache_lookup(const riffle_kv_cache* cache,
                                                const riffle_block_key* keys, int64_t num_keys,
                                                int64_t* tokens);
RIFFLE_API riffle_status riffle_kv_cache_set_block_keys(riffle_kv_cache* cache, int64_t seq,
                                                        const riffle_block_key* keys,
                                                        int64_t num_keys);

// Moves a sequence's pages to the caller's memory and back.
RIFFLE_API riffle_status riffle_kv_cache_swap_bytes(const riffle_kv_cache* cache, int64_t seq,
                                                    int64_t* bytes);
RIFFLE_API riffle_status riffle_kv_cache_swap_out(riffle_kv_cache* cache, int64_t seq, void* memory,
                                                  int64_t bytes, riffle_thread_pool* pool);
RIFFLE_API riffle_status riffle_kv_cache_swap_in(riffle_kv_cache* cache, int64_t seq,
                                                 const void* memory, int64_t bytes,
                                                 riffle_thread_pool* pool);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // RIFFLE_C_CACHE_H_
