// Paged attention for C, and writing keys and values by slots. What the calls do:
// riffle/attention.h and riffle/write_kv.h. How they fail, how structs grow: riffle/c/riffle.h,
// which includes this.
#ifndef RIFFLE_C_PAGED_ATTENTION_H_
#define RIFFLE_C_PAGED_ATTENTION_H_

#include "riffle/c/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// [tokens, heads, head_dim], head_dim contiguous.
typedef struct riffle_heads {
  const void* data;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t token_stride;
  int64_t head_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_heads;

typedef int32_t riffle_kv_format;
enum {
  RIFFLE_KV_PLAIN = 0,
  RIFFLE_KV_Q8_0 = 1,
  RIFFLE_KV_Q4_0 = 2,
  RIFFLE_KV_Q4_1 = 3,
  RIFFLE_KV_Q5_0 = 4,
  RIFFLE_KV_Q5_1 = 5,
  RIFFLE_KV_IQ4_NL = 6,
};

// Scales of elements (riffle::KvScales). All zero: none.
typedef struct riffle_kv_scales {
  const void* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
  int64_t group_stride;
  int64_t group;  // elements of a row that share a scale; 0: the whole row
  riffle_dtype dtype;
  float divisor;  // 0: 1
} riffle_kv_scales;

// The keys, or the values, of every page of a pool: element (page, token, head, i) is at page *
// page_stride + token * token_stride + head * head_stride + i. For a block format, dtype is
// RIFFLE_U8 and strides are in bytes.
typedef struct riffle_paged_kv {
  size_t size;
  void* data;  // only riffle_write_kv writes to it
  int64_t num_pages;
  int64_t page_size;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
  riffle_kv_scales scales;
  riffle_dtype dtype;
  riffle_kv_format format;
} riffle_paged_kv;

typedef struct riffle_paged_batch {
  size_t size;
  int64_t sequences;
  const void* cu_q_lens;   // [sequences + 1], or null: one query a sequence
  const void* kv_lens;     // [sequences]
  const void* page_table;  // [sequences, max_pages]
  int64_t max_pages;
  int64_t page_table_stride;
  riffle_index_type cu_q_lens_type;
  riffle_index_type kv_lens_type;
  riffle_index_type page_table_type;
  int32_t reserved;
} riffle_paged_batch;

// f32, f16, bf16: added to logits; u8: 0 hides a key. Without data: no mask.
typedef struct riffle_mask {
  const void* data;
  int64_t tokens;  // as many as q has, or 1
  int64_t heads;   // as many as q has, or 1
  int64_t keys;    // at least the largest kv_len
  int64_t token_stride;
  int64_t head_stride;
  int64_t key_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_mask;

typedef struct riffle_attention_options {
  size_t size;
  riffle_thread_pool* pool;
  const float* sinks;         // [heads of q], or null
  const float* alibi_slopes;  // [heads of q], or null
  riffle_mask mask;
  int64_t window;        // w >= 1: a query at position p sees no key before p-w+1; 0: no window
  int64_t window_right;  // r >= 0, if has_window_right: no key after p+r
  float scale;           // if has_scale; else 1 / sqrt(head_dim)
  float soft_cap;        // c > 0; 0: none
  int32_t has_scale;
  int32_t has_window_right;
  int32_t not_causal;     // 1: a query sees all keys, including later ones
  int32_t bf16_products;  // 1: q may be rounded to bf16 where keys and values are exact in it
} riffle_attention_options;

typedef struct riffle_attention_out {
  size_t size;
  void* data;  // [tokens, heads, head_dim of values] of q's dtype
  int64_t token_stride;
  int64_t head_stride;
  float* lse;  // [tokens, heads], or null
  int64_t lse_token_stride;
} riffle_attention_out;

RIFFLE_API riffle_status riffle_paged_attention(const riffle_heads* q, const riffle_paged_kv* keys,
                                                const riffle_paged_kv* values,
                                                const riffle_paged_batch* batch,
                                                const riffle_attention_out* out,
                                                const riffle_attention_options* options);

// What all calls on one batch need (riffle::AttentionPlan): made once, used by every layer.
typedef struct riffle_attention_plan riffle_attention_plan;
RIFFLE_API riffle_status riffle_attention_plan_create(const riffle_heads* q,
                                                      const riffle_paged_kv* keys,
                                                      const riffle_paged_batch* batch,
                                                      const riffle_attention_options* options,
                                                      riffle_attention_plan** plan);
// Plans another batch, reusing the plan's memory. After a failure the plan has no batch.
RIFFLE_API riffle_status riffle_attention_plan_make(riffle_attention_plan* plan,
                                                    const riffle_heads* q,
                                                    const riffle_paged_kv* keys,
                                                    const riffle_paged_batch* batch,
                                                    const riffle_attention_options* options);
RIFFLE_API void riffle_attention_plan_destroy(riffle_attention_plan* plan);
RIFFLE_API riffle_status riffle_planned_attention(const riffle_heads* q,
                                                  const riffle_paged_kv* keys,
                                                  const riffle_paged_kv* values,
                                                  const riffle_attention_plan* plan,
                                                  const riffle_attention_out* out,
                                                  const riffle_attention_options* options);

typedef struct riffle_attention_part {
  riffle_heads out;
  const float* lse;
  int64_t lse_token_stride;
} riffle_attention_part;
// Merges results over disjoint parts of the keys into one.
RIFFLE_API riffle_status riffle_merge_states(const riffle_attention_part* parts, int64_t num_parts,
                                             const riffle_attention_out* out,
                                             riffle_thread_pool* pool);

typedef struct riffle_write_kv_options {
  size_t size;
  riffle_thread_pool* pool;
  // Null: elements are divided by the scales that the pool has. Otherwise scales are computed and
  // stored here, in the dtype and strides of the pool's `scales`.
  void* key_computed_scales;
  void* value_computed_scales;
} riffle_write_kv_options;

// Writes token t to slots[t] = page * page_size + offset of both pools; -1: the token is skipped.
//   slots  [keys->tokens] of slot_type
RIFFLE_API riffle_status riffle_write_kv(const riffle_heads* keys, const riffle_heads* values,
                                         const void* slots, riffle_index_type slot_type,
                                         const riffle_paged_kv* key_pages,
                                         const riffle_paged_kv* value_pages,
                                         const riffle_write_kv_options* options);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // RIFFLE_C_PAGED_ATTENTION_H_
